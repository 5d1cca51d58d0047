"""What is said of requests to a server that came to nothing."""

from urllib.parse import urljoin, urlsplit

import httpx2

from gecko.llm.openai_address import Address

KEPT = "what was finished before is kept, run the same command again"


class FailedError(Exception):
    """No answer: what was said last, its sort, its status if it has one, and whether it may be asked again."""

    def __init__(self, kind: str, said: str, status: int = 0, *, again: bool = True) -> None:
        super().__init__(said)
        self.kind, self.status, self.again = kind, status, again
        self.attempts = 1


class Sentences:
    """The sentences of a client of one server."""

    _address: Address
    _key: str | None
    _worked: bool  # whether the server has answered anything, so that the key is a good one

    def _ended(self, path: str, failed: FailedError, of_known: str = "") -> str:
        said = str(failed)
        if failed.attempts > 1 or failed.again:
            said = f"no usable answer after {failed.attempts} attempts, the last: {said}"
        if of_known:
            said += "; a known text is not answered either" + (f" ({of_known})" if of_known != str(failed) else "")
        return f"{self._address.url}{path}: {self._clean(said)}; {KEPT}"

    def _bad_key(self, failed: FailedError) -> str:
        verb = "no longer takes" if self._worked else "refuses"
        kept = f"; {KEPT}" if self._worked else ""
        return (
            f"{self._address.url} {verb} the key ({failed}); put a valid one in the environment variable "
            f"GECKO_API_KEY{kept}"
        )

    def _moved(self, path: str, response: httpx2.Response) -> str:
        asked = self._address.url + path
        target = urlsplit(urljoin(asked, response.headers.get("Location", "")))
        place = target._replace(query="", fragment="", netloc=target.netloc.rpartition("@")[2]).geturl()
        mend = "give the address to which it answers itself"
        if place != asked and place.rstrip("/").endswith(path):
            mend = f"give that address: --llm openai:{place.rstrip('/').removesuffix(path)}#{self._address.model}"
        return f"{asked} is redirected to {place} ({response.status_code}); {mend}"

    def _clean(self, text: str) -> str:
        """What a server or a library said, without the key, should it repeat it."""
        return text.replace(self._key, "***") if self._key else text
