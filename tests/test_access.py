"""Keys, browsers, and how often anybody may ask."""

import re
import traceback

import pytest
from multidict import CIMultiDict

from src.errors import ConfigError
from src.serving.access import Access, Rate, is_loopback
from src.serving.messages import Refused

ANN, BOB, RITA = "ann-has-a-long-key", "bob-has-a-long-key", "rita-has-a-long-key"
KEYS = {"FLYWHEEL_CLIENT_KEYS": f"ann:{ANN}, bob:{BOB}", "FLYWHEEL_REVIEWER_KEYS": f"rita:{RITA}"}
HERE = {"Host": "127.0.0.1:8100"}


def who(access: Access, kind: str | None, **headers: str) -> str:
    return access.who(kind, CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}))


def refused(access: Access, kind: str | None, **headers: str) -> Refused:
    with pytest.raises(Refused) as error:
        who(access, kind, **headers)
    return error.value


def test_every_key_has_its_holder_and_its_purpose() -> None:
    access = Access("0.0.0.0", KEYS)
    assert not access.open
    assert who(access, "client", Authorization=f"Bearer {ANN}") == "ann"
    assert who(access, "client", Authorization=f"bearer  {BOB} ") == "bob"
    assert who(access, "reviewer", Authorization=f"Bearer {RITA}") == "rita"
    assert who(access, None) == ""
    assert refused(access, "client", Authorization=f"Bearer {RITA}").status == 403
    assert refused(access, "reviewer", Authorization=f"Bearer {ANN}").status == 403


@pytest.mark.parametrize("given", [
    "", ANN, f"Basic {ANN}", "Bearer", "Bearer ", f"Bearer {ANN}x", f"Bearer {ANN[:-1]}", f"Bearer {ANN},{BOB}",
    "Bearer ann", f"Bearer ann:{ANN}", "Bearer \udcff\udcfe", f"Bearer {ANN.upper()}",
])
def test_anything_else_is_nobody(given: str) -> None:
    error = refused(Access("0.0.0.0", KEYS), "client", Authorization=given)
    assert (error.status, error.headers) == (401, {"WWW-Authenticate": 'Bearer realm="flywheel"'})
    assert not set(re.findall(r"[\w-]{10,}", given)) & set(re.findall(r"[\w-]{10,}", error.message))


def test_with_keys_a_name_is_not_believed() -> None:
    assert refused(Access("127.0.0.1", KEYS), "reviewer", X_Reviewer="rita", **HERE).status == 401


def test_where_only_clients_have_keys_nobody_reviews() -> None:
    access = Access("127.0.0.1", {"FLYWHEEL_CLIENT_KEYS": KEYS["FLYWHEEL_CLIENT_KEYS"]})
    error = refused(access, "reviewer", X_Reviewer="rita", **HERE)
    assert error.status == 403 and "FLYWHEEL_REVIEWER_KEYS" in error.message


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.4", "myhost", "127.0.0.1.example.com"])
def test_without_keys_nobody_listens_where_others_could_ask(host: str) -> None:
    with pytest.raises(ConfigError, match=f"serving.host='{host}'.*FLYWHEEL_CLIENT_KEYS"):
        Access(host, {})
    with pytest.raises(ConfigError, match="FLYWHEEL_REVIEWER_KEYS"):
        Access(host, {"FLYWHEEL_CLIENT_KEYS": KEYS["FLYWHEEL_CLIENT_KEYS"]})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert Access(host, {"FLYWHEEL_CLIENT_KEYS": " "}).open


@pytest.mark.parametrize(("pairs", "says"), [
    (ANN, "pair 1"),  # without a name
    (f"ann:{ANN},", "pair 2"),
    (f"ann:{ANN},bob", "pair 2"),
    ("ann:fifteen-letters", "16 to 200"),
    (f"{ANN}:ann", "16 to 200"),  # the wrong way round
    (f"ann:{ANN},ann:{BOB}", "pair 2.*only once"),
    (f"ann:{ANN},bob:{ANN}", "pair 2.*only once"),
    (f"an n:{ANN}", "pair 1"),
    (f"{'a' * 41}:{ANN}", "pair 1"),
    (f"ann:{ANN} {BOB}", "16 to 200"),
    (f"ann:{ANN}ä", "16 to 200"),
])
def test_keys_that_are_none_are_told_by_their_place_alone(pairs: str, says: str) -> None:
    pairs = pairs.replace("fifteen-letters", "fifteen-letter-")
    with pytest.raises(ConfigError, match=f"(?s)FLYWHEEL_CLIENT_KEYS.*{says}") as error:
        Access("127.0.0.1", {"FLYWHEEL_CLIENT_KEYS": pairs})
    told = str(error.value)
    assert not any(secret in told for secret in (ANN, BOB, "fifteen-letter-"))


def test_one_key_for_both_purposes_is_refused() -> None:
    with pytest.raises(ConfigError, match="one holder and one purpose") as error:
        Access("127.0.0.1", {**KEYS, "FLYWHEEL_REVIEWER_KEYS": f"rita:{ANN}"})
    assert ANN not in str(error.value)


def test_no_key_shows_in_what_may_be_printed() -> None:
    access = Access("0.0.0.0", KEYS)
    printed = [repr(access), str(vars(access))]
    try:
        who(access, "client", Authorization=f"Bearer {RITA}")
    except Refused as error:
        printed += [str(error), repr(error), "".join(traceback.format_exception(error))]
    assert not any(key in text for key in (ANN, BOB, RITA) for text in printed)


def test_without_keys_everybody_here_says_who_they_are() -> None:
    access = Access("127.0.0.1", {})
    assert who(access, "client", **HERE) == ""
    assert who(access, "reviewer", X_Reviewer="Rita_2.b-c", **HERE) == "Rita_2.b-c"
    for name in ("", "a b", "x" * 41, "ä", "a/b", "a\n", "<b>"):
        assert refused(access, "reviewer", X_Reviewer=name, **HERE).status == 401


@pytest.mark.parametrize("host", ["localhost", "localhost:8100", "127.0.0.1", "[::1]:8100", "LocalHost:1"])
def test_this_machine_by_all_its_names(host: str) -> None:
    assert who(Access("127.0.0.1", {}), "client", Host=host, Origin=f"http://{host}") == ""


@pytest.mark.parametrize("headers", [
    {"Host": "evil.example:8100"},  # a name that now leads here
    {"Host": "127.0.0.1.evil.example"},
    {"Host": ""},
    {},
    {"Host": "127.0.0.1:8100", "Origin": "https://evil.example"},
    {"Host": "127.0.0.1:8100", "Origin": "null"},
    {"Host": "127.0.0.1:8100", "Origin": "http://127.0.0.1:9000"},
    {"Host": "127.0.0.1:8100", "Origin": "http://[::"},
])
@pytest.mark.parametrize("kind", ["client", "reviewer", None])
def test_without_keys_pages_of_others_get_nothing(headers: dict[str, str], kind: str | None) -> None:
    assert refused(Access("127.0.0.1", {}), kind, X_Reviewer="rita", **headers).status == 403


def test_with_keys_the_host_may_be_any() -> None:
    assert who(Access("127.0.0.1", KEYS), "client", Host="api.example", Origin="https://api.example",
               Authorization=f"Bearer {ANN}") == "ann"


def test_a_second_of_requests_may_come_at_once_and_then_as_many_as_flow_in() -> None:
    now = [100.0]
    rate = Rate(4.0, lambda: now[0])
    for _ in range(4):
        rate.take("ann")
    with pytest.raises(Refused) as error:
        rate.take("ann")
    assert error.value.status == 429 and error.value.retry_after_s == pytest.approx(0.25)
    rate.take("bob")  # has a bucket of their own
    now[0] += 0.25
    rate.take("ann")
    with pytest.raises(Refused):
        rate.take("ann")
    now[0] += 1000  # a bucket holds a second's worth, however long it stood
    for _ in range(4):
        rate.take("ann")
    with pytest.raises(Refused):
        rate.take("ann")


def test_less_than_one_request_a_second() -> None:
    now = [0.0]
    rate = Rate(0.1, lambda: now[0])
    rate.take("")
    with pytest.raises(Refused) as error:
        rate.take("")
    assert error.value.retry_after_s == pytest.approx(10)
    now[0] += 10.001
    rate.take("")


def test_no_limit() -> None:
    rate = Rate(None)
    for _ in range(1000):
        rate.take("ann")


@pytest.mark.parametrize("per_second", [0, -1, float("nan"), float("inf")])
def test_rates_that_are_none(per_second: float) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"requests_per_second={per_second}")):
        Rate(per_second)
