"""FRet, the few-shot prompted retrieval dataset (Section 3.2 of the paper): generate, mine, relabel, fuse, select."""
