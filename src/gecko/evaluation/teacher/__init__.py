"""Is a language model fit to teach, and what is it worth? A probe that ships, and labelled sets."""
