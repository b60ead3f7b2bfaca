import pytest

from objects.errors import InvalidObjectId, UsageError
from objects.ids import IdFactory, ObjectId

SECRET = b"s" * 32


@pytest.fixture
def rooms() -> IdFactory:
    return IdFactory("rooms", SECRET)


class TestNamedIds:
    """Spec §1: deterministic from namespace key and name, 32 bytes as 64 lowercase hex digits."""

    def test_the_same_name_is_the_same_object_for_ever(self, rooms: IdFactory) -> None:
        again = IdFactory("rooms", SECRET).from_name("lobby")
        assert rooms.from_name("lobby") == again
        assert str(again) == "874409b0364979269311284a3b4a29a160a658f7a9c727c2ccb44573f8b8f43e"

    def test_other_names_namespaces_and_secrets_give_other_ids(self, rooms: IdFactory) -> None:
        ids = {
            str(rooms.from_name("a")),
            str(rooms.from_name("b")),
            str(IdFactory("halls", SECRET).from_name("a")),
            str(IdFactory("rooms", b"t" * 32).from_name("a")),
        }
        assert len(ids) == 4

    def test_a_name_shaped_like_an_id_does_not_yield_its_mac(self, rooms: IdFactory) -> None:
        head = rooms.unique().digest[:16]
        name = head.decode("latin-1")
        assert rooms.from_name(name).digest[:16] != rooms.unique().digest[16:]

    def test_the_object_does_not_see_a_name_longer_than_1024_bytes(self, rooms: IdFactory) -> None:
        assert rooms.from_name("x" * 1024).inside().name == "x" * 1024
        assert rooms.from_name("é" * 513).inside().name is None
        assert rooms.from_name("é" * 513).inside() == rooms.from_name("é" * 513)


class TestUniqueIds:
    def test_never_repeat_and_have_no_name(self, rooms: IdFactory) -> None:
        ids = {rooms.unique() for _ in range(100)}
        assert len(ids) == 100
        assert {i.name for i in ids} == {None}


class TestParsing:
    """Spec §1: an id authenticates itself; anything else is a type error."""

    def test_round_trip_loses_only_the_name(self, rooms: IdFactory) -> None:
        named = rooms.from_name("lobby")
        parsed = rooms.parse(str(named))
        assert parsed == named
        assert hash(parsed) == hash(named)
        assert parsed.name is None
        assert parsed.key == f"rooms/{named}"

    @pytest.mark.parametrize("text", ["", "f" * 63, "f" * 65, "F" * 64, "g" * 64, " " + "f" * 63, "f" * 63 + "\n"])
    def test_anything_but_64_lowercase_hex_digits_is_rejected(self, rooms: IdFactory, text: str) -> None:
        with pytest.raises(InvalidObjectId):
            rooms.parse(text)

    def test_an_invented_id_is_rejected(self, rooms: IdFactory) -> None:
        with pytest.raises(InvalidObjectId):
            rooms.parse("f" * 64)

    def test_every_changed_digit_is_noticed(self, rooms: IdFactory) -> None:
        text = str(rooms.unique())
        for at in range(64):
            changed = text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]
            with pytest.raises(InvalidObjectId):
                rooms.parse(changed)

    def test_an_id_of_another_namespace_is_rejected(self, rooms: IdFactory) -> None:
        with pytest.raises(InvalidObjectId):
            rooms.parse(str(IdFactory("halls", SECRET).from_name("a")))


class TestUsage:
    @pytest.mark.parametrize("namespace", ["", "a/b", "../x", "-a", "a" * 65, "a b"])
    def test_a_namespace_must_be_fit_for_a_folder_name(self, namespace: str) -> None:
        with pytest.raises(UsageError):
            IdFactory(namespace, SECRET)

    def test_a_short_secret_is_refused(self) -> None:
        with pytest.raises(UsageError):
            IdFactory("rooms", b"short")

    def test_ids_of_different_namespaces_are_never_equal(self) -> None:
        assert ObjectId("a", bytes(32)) != ObjectId("b", bytes(32))
