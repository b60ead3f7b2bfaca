from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objects.codec import MAX_DEPTH, decode, encode
from objects.errors import DecodeError, LimitExceeded, NotSerializable, Overloaded, RemoteError

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.datetimes()
)
hashables = scalars | st.lists(scalars, max_size=3).map(tuple) | st.frozensets(scalars, max_size=3)
values = st.recursive(
    hashables,
    lambda c: st.lists(c, max_size=4) | st.dictionaries(hashables, c, max_size=4) | st.sets(hashables, max_size=4),
    max_leaves=10,
)


class TestRoundTrip:
    @given(values)
    def test_every_carried_value_comes_back_equal_and_of_the_same_type(self, value: object) -> None:
        back = decode(encode(value))
        assert back == value
        assert type(back) is type(value)

    @given(st.integers())
    def test_integers_of_any_size(self, value: int) -> None:
        assert decode(encode(value)) == value
        assert decode(encode(value << 70)) == value << 70

    @pytest.mark.parametrize("bits", [6, 7, 13, 61, 62, 63, 64, 65, 127, 128, 5000])
    def test_integers_around_every_edge_of_the_format(self, bits: int) -> None:
        for value in range(2**bits - 2, 2**bits + 3):
            assert decode(encode(value)) == value
            assert decode(encode(-value)) == -value

    def test_nan_and_negative_zero(self) -> None:
        back = decode(encode([float("nan"), -0.0]))
        assert isinstance(back, list)
        assert back[0] != back[0]
        assert str(back[1]) == "-0.0"

    def test_bool_is_not_int(self) -> None:
        assert decode(encode([True, 1, False, 0])) == [True, 1, False, 0]
        assert [type(v) for v in decode(encode([True, 1]))] == [bool, int]  # type: ignore[attr-defined]

    def test_datetimes_keep_offset_and_fold(self) -> None:
        odd = timezone(timedelta(hours=5, minutes=45, seconds=1))
        for value in (datetime(2026, 8, 1, 1, 30, fold=1), datetime.now(UTC), datetime(1, 1, 1, tzinfo=odd)):
            back = decode(encode(value))
            assert isinstance(back, datetime)
            assert (back, back.fold, back.utcoffset()) == (value, value.fold, value.utcoffset())

    def test_mutable_bytes_become_bytes(self) -> None:
        assert decode(encode([bytearray(b"a"), memoryview(b"b")])) == [b"a", b"b"]


class TestIdentity:
    """Inside one value references stay references; cycles through mutable containers work."""

    def test_a_list_that_holds_itself(self) -> None:
        value: list[object] = [1]
        value.append(value)
        back = decode(encode(value))
        assert isinstance(back, list)
        assert back[1] is back

    def test_a_cycle_over_dict_and_list(self) -> None:
        value: dict[str, object] = {}
        value["items"] = [value, value]
        back = decode(encode(value))
        assert isinstance(back, dict)
        assert back["items"][0] is back
        assert back["items"][1] is back

    def test_shared_items_stay_shared_and_copies_stay_apart(self) -> None:
        shared, row = [1], (1, 2)
        back = decode(encode([shared, shared, [1], row, row, {1: shared}]))
        assert isinstance(back, list)
        assert back[0] is back[1] is back[5][1]
        assert back[0] is not back[2]
        assert back[3] is back[4]

    def test_a_tuple_in_a_cycle_is_refused(self) -> None:
        inner: list[object] = []
        value = (inner,)
        inner.append(value)
        with pytest.raises(NotSerializable, match="cycle"):
            encode(value)

    def test_the_copy_does_not_follow_later_changes(self) -> None:
        value = {"a": [1]}
        data = encode(value)
        value["a"].append(2)
        assert decode(data) == {"a": [1]}


class TestRefusals:
    @pytest.mark.parametrize(
        "value",
        [
            object(),
            lambda: 1,
            int,
            IntEnum("E", "a")(1),
            range(3),
            iter([]),
            timedelta(1),
            1j,
            type("D", (dict,), {})(),
        ],
    )
    def test_instances_of_other_classes_are_refused(self, value: object) -> None:
        with pytest.raises(NotSerializable):
            encode([value])

    def test_depth_is_bounded_both_ways(self) -> None:
        value: list[object] = []
        for _ in range(MAX_DEPTH - 1):
            value = [value]
        assert decode(encode(value)) == value
        with pytest.raises(NotSerializable, match="deeper"):
            encode([value])
        with pytest.raises(DecodeError, match="deeper"):
            decode(b"\x01" + b"L\x01" * (MAX_DEPTH + 1) + b"N")

    def test_the_limit_is_on_the_whole_encoding(self) -> None:
        size = len(encode("x" * 100))
        assert encode("x" * 100, limit=size)
        with pytest.raises(LimitExceeded) as caught:
            encode("x" * 101, limit=size)
        assert (caught.value.limit, caught.value.actual) == (size, size + 1)


class TestErrors:
    def test_standard_exceptions_keep_their_type_and_message(self) -> None:
        back = decode(encode([ValueError("a"), KeyError("k"), Overloaded("busy")]))
        assert isinstance(back, list)
        assert [(type(e), e.args) for e in back] == [(ValueError, ("a",)), (KeyError, ("k",)), (Overloaded, ("busy",))]

    def test_other_exceptions_become_remote_errors_that_keep_the_name_over_hops(self) -> None:
        class Odd(ValueError):
            pass

        once = decode(encode(Odd("x")))
        twice = decode(encode(once))
        assert isinstance(twice, RemoteError)
        assert (twice.kind, twice.message, str(twice)) == ("Odd", "x", "Odd: x")

    def test_interpreter_exits_are_not_data(self) -> None:
        with pytest.raises(NotSerializable):
            encode(SystemExit())


class TestReferences:
    def test_hooks_see_what_is_not_plain_data(self) -> None:
        sent: list[object] = []

        def reference(value: object) -> int | None:
            if not callable(value):
                return None
            sent.append(value)
            return len(sent) - 1

        data = encode({"f": len, "n": 1}, reference=reference)
        assert decode(data, resolve=lambda n: sent[n]) == {"f": len, "n": 1}
        with pytest.raises(DecodeError, match="references"):
            decode(data)
        with pytest.raises(NotSerializable):
            encode([object()], reference=reference)


class TestDecoding:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x02N",
            b"\x01",
            b"\x01?",
            b"\x01NN",
            b"\x01L\x05N",
            b"\x01S\x05ab",
            b"\x01S\x01\xff",
            b"\x01R\x00",
            b"\x01E\x01L\x00",
            b"\x01M\x01M\x00N",
            b"\x01D1234",
            b"\x01I" + b"\xff" * 9,
            b"\x01I" + b"\xff" * 18 + b"\x01",
            b"\x01I" + b"\xff" * 8 + b"\x80\x01",
            b"\x01L" + b"\xff" * 9 + b"\x01\x01",
            b"\x01W\x07\x00",
            b"\x01W\x00\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"\x01W\x02\x00N",
            b"\x01XN",
        ],
    )
    def test_malformed_bytes_raise_decode_error(self, data: bytes) -> None:
        with pytest.raises(DecodeError):
            decode(data)

    @given(values, st.data())
    def test_every_cut_of_a_value_is_noticed(self, value: object, data: st.DataObject) -> None:
        encoded = encode(value)
        end = data.draw(st.integers(0, len(encoded) - 1))
        with pytest.raises(DecodeError):
            decode(encoded[:end])
