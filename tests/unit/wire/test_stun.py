import hashlib
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import stun_vectors as vectors
from wire import stun
from wire.errors import StunAttributeError, StunError
from wire.stun import Attr, MessageClass, Method, TransportAddress

TID = bytes(range(1, 13))
KEY = b"key"
WRONG_KEY = b"kez"


def request(*attributes: tuple[int, bytes], **options: object) -> bytes:
    return stun.serialize(Method.BINDING, MessageClass.REQUEST, TID, attributes, **options)  # type: ignore[arg-type]


def append(message: bytes, attribute: int, value: bytes) -> bytes:
    """What an attacker on the path can do: add bytes behind the integrity attribute and mend the length."""
    tail = attribute.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value + bytes(-len(value) % 4)
    return message[:2] + (len(message) + len(tail) - 20).to_bytes(2, "big") + message[4:] + tail


class TestPublishedVectors:
    """RFC 5769 §2 and RFC 8489 B.1."""

    def test_short_term_request(self) -> None:
        message = stun.parse(vectors.REQUEST)
        assert (message.method, message.message_class) == (Method.BINDING, MessageClass.REQUEST)
        assert message.transaction_id == bytes.fromhex("b7e7a701bc34d686fa87dfae")
        assert message.text(Attr.SOFTWARE) == "STUN test client"
        assert message.uint(Attr.PRIORITY) == 0x6E0001FF
        assert message.uint(Attr.ICE_CONTROLLED, 8) == 0x932FF9B151263B36
        assert message.text(Attr.USERNAME) == "evtj:h6vY"
        assert message.has_fingerprint
        assert message.check_integrity(vectors.SHORT_TERM_PASSWORD)
        assert not message.check_integrity(vectors.SHORT_TERM_PASSWORD + b"x")

    @pytest.mark.parametrize(
        ("datagram", "host"),
        [(vectors.RESPONSE_IPV4, "192.0.2.1"), (vectors.RESPONSE_IPV6, "2001:db8:1234:5678:11:2233:4455:6677")],
    )
    def test_responses(self, datagram: bytes, host: str) -> None:
        message = stun.parse(datagram)
        assert message.message_class == MessageClass.SUCCESS
        assert message.address(Attr.XOR_MAPPED_ADDRESS) == TransportAddress(ip_address(host), 32853)
        assert message.check_integrity(vectors.SHORT_TERM_PASSWORD)
        assert message.has_fingerprint

    def test_long_term_request_can_be_made_again_byte_by_byte(self) -> None:
        message = stun.parse(vectors.LONG_TERM_REQUEST)
        key = hashlib.md5("マトリックス:example.org:TheMatrIX".encode()).digest()
        assert message.check_integrity(key)
        made = stun.serialize(
            message.method, message.message_class, message.transaction_id, message.attributes, key=key
        )
        assert made == vectors.LONG_TERM_REQUEST

    def test_sha256_request_can_be_made_again_byte_by_byte(self) -> None:
        message = stun.parse(vectors.LONG_TERM_SHA256_REQUEST)
        key = hashlib.sha256("マトリックス:example.org:TheMatrIX".encode()).digest()
        assert message.check_integrity_sha256(key)
        assert not message.check_integrity(key)
        made = stun.serialize(
            message.method, message.message_class, message.transaction_id, message.attributes, sha256_key=key
        )
        assert made == vectors.LONG_TERM_SHA256_REQUEST

    @pytest.mark.parametrize("offset", [n for n in range(len(vectors.REQUEST)) if n not in (100, 101)])
    def test_any_changed_byte_is_noticed_unless_it_hides_the_fingerprint(self, offset: int) -> None:
        changed = bytearray(vectors.REQUEST)
        changed[offset] ^= 1
        with pytest.raises(StunError):
            stun.parse(bytes(changed))


class TestHeader:
    """RFC 8489 §5, §6.3; rules S1, S2, S11, ICE-2."""

    @pytest.mark.parametrize("message_class", MessageClass)
    @pytest.mark.parametrize("method", Method)
    def test_method_and_class_are_interleaved_and_come_apart_again(
        self, method: Method, message_class: MessageClass
    ) -> None:
        message = stun.parse(stun.serialize(method, message_class, TID, []))
        assert (message.method, message.message_class) == (method, message_class)

    @given(st.integers(0, 0xFFF), st.integers(0, 3))
    def test_all_twelve_method_bits_survive(self, method: int, message_class: int) -> None:
        message = stun.parse(stun.serialize(method, message_class, TID, []))
        assert (message.method, message.message_class) == (method, message_class)

    def test_known_types_on_the_wire(self) -> None:
        assert stun.serialize(Method.ALLOCATE, MessageClass.ERROR, TID, [])[:2] == b"\x01\x13"
        assert stun.serialize(Method.DATA, MessageClass.INDICATION, TID, [])[:2] == b"\x00\x17"

    @pytest.mark.parametrize("size", range(20))
    def test_shorter_than_a_header(self, size: int) -> None:
        with pytest.raises(StunError):
            stun.parse(request()[:size])

    @pytest.mark.parametrize("first", [0x40, 0x80, 0xC0])
    def test_first_two_bits_must_be_zero(self, first: int) -> None:
        with pytest.raises(StunError):
            stun.parse(bytes([first]) + request()[1:])

    def test_messages_of_rfc_3489_have_no_cookie(self) -> None:
        with pytest.raises(StunError):
            stun.parse(b"\x00\x01\x00\x00" + bytes(range(1, 17)))

    @pytest.mark.parametrize("length", [1, 2, 3, 4, 65535, 65532])
    def test_length_field_that_is_not_the_size(self, length: int) -> None:
        with pytest.raises(StunError):
            stun.parse(b"\x00\x01" + length.to_bytes(2, "big") + request()[4:])

    @pytest.mark.parametrize("extra", [1, 2, 3])
    def test_length_not_a_multiple_of_four(self, extra: int) -> None:
        with pytest.raises(StunError):
            stun.parse(b"\x00\x01" + extra.to_bytes(2, "big") + request()[4:] + bytes(extra))

    def test_trailing_bytes(self) -> None:
        with pytest.raises(StunError):
            stun.parse(request() + bytes(4))

    def test_zero_transaction_id(self) -> None:
        with pytest.raises(StunError):
            stun.parse(request()[:8] + bytes(12))


class TestAttributes:
    """RFC 8489 §14; rules S3, S4, S6, S8."""

    def test_attribute_past_the_end(self) -> None:
        for size in (5, 8, 100, 65535):
            with pytest.raises(StunError):
                stun.parse(append(request(), Attr.DATA, b"1234")[:22] + size.to_bytes(2, "big") + b"1234")

    def test_padding_content_is_ignored(self) -> None:
        message = append(request(), Attr.USERNAME, b"abc")
        assert stun.parse(message[:-1] + b"\xff").get(Attr.USERNAME) == b"abc"

    @pytest.mark.parametrize("size", range(9))
    def test_padding_we_write_is_zero_and_aligned(self, size: int) -> None:
        message = request((Attr.DATA, b"\xff" * size))
        assert len(message) % 4 == 0
        assert message[24 + size :] == bytes(-size % 4)
        assert stun.parse(message).get(Attr.DATA) == b"\xff" * size

    def test_first_of_a_repeated_attribute_counts(self) -> None:
        message = stun.parse(request((Attr.LIFETIME, stun.uint32(1)), (Attr.LIFETIME, stun.uint32(2))))
        assert message.uint(Attr.LIFETIME) == 1
        assert message.get_all(Attr.LIFETIME) == [stun.uint32(1), stun.uint32(2)]

    def test_sixty_four_attributes_pass_and_one_more_does_not(self) -> None:
        assert len(stun.parse(request(*[(0x9000 + n, b"") for n in range(64)])).attributes) == 64
        with pytest.raises(StunError):
            stun.parse(request(*[(0x9000 + n, b"") for n in range(65)]))

    def test_a_thousand_attributes_are_dropped(self) -> None:
        with pytest.raises(StunError):
            stun.parse(request(*[(Attr.PRIORITY, b"1234")] * 1000))

    @pytest.mark.parametrize("value", [b"", b"123", b"12345"])
    def test_fixed_size_numbers(self, value: bytes) -> None:
        with pytest.raises(StunAttributeError) as caught:
            stun.parse(request((Attr.LIFETIME, value))).uint(Attr.LIFETIME)
        assert caught.value.attribute == Attr.LIFETIME

    def test_text_must_be_utf8_and_not_too_long(self) -> None:
        for value in (b"\xff\xfe", b"x" * 509):
            with pytest.raises(StunAttributeError):
                stun.parse(request((Attr.USERNAME, value))).text(Attr.USERNAME, 508)

    def test_absent_attributes_are_none(self) -> None:
        message = stun.parse(request())
        assert message.get(Attr.USERNAME) is None
        assert message.uint(Attr.LIFETIME) is None
        assert message.text(Attr.USERNAME) is None
        assert message.address(Attr.XOR_PEER_ADDRESS) is None
        assert message.error() is None
        assert Attr.USE_CANDIDATE not in message

    def test_empty_attributes_are_present(self) -> None:
        assert Attr.USE_CANDIDATE in stun.parse(request((Attr.USE_CANDIDATE, b"")))

    def test_unknown_required_lists_each_once_in_order_and_leaves_out_optional_ones(self) -> None:
        message = stun.parse(
            request((0x7FFF, b""), (Attr.USERNAME, b"u"), (0x0099, b""), (0x7FFF, b""), (0x9999, b""), (0x8000, b""))
        )
        assert message.unknown_required(frozenset({Attr.USERNAME})) == [0x7FFF, 0x0099]

    def test_repr_shows_no_value(self) -> None:
        assert "secret" not in repr(stun.parse(request((Attr.USERNAME, b"secret"))))


class TestAddresses:
    """RFC 8489 §14.2; rule S10."""

    @given(st.ip_addresses(), st.integers(0, 65535), st.binary(min_size=12, max_size=12))
    def test_round_trip(self, ip: stun.IPAddress, port: int, transaction_id: bytes) -> None:
        value = stun.xor_address((ip, port), transaction_id)
        assert len(value) == (8 if ip.version == 4 else 20)
        assert stun.parse_xor_address(value, transaction_id) == (ip, port)

    def test_hosts_may_be_text_and_zone_ids_are_left_out(self) -> None:
        assert stun.xor_address(("192.0.2.1", 32853), TID) == bytes.fromhex("0001a147e112a643")
        assert stun.xor_address(("fe80::1%eth0", 1), TID) == stun.xor_address(("fe80::1", 1), TID)

    @pytest.mark.parametrize("family", [0, 3, 255])
    def test_unknown_family(self, family: int) -> None:
        message = stun.parse(request((Attr.XOR_PEER_ADDRESS, bytes([0, family]) + bytes(6))))
        with pytest.raises(StunAttributeError):
            message.address(Attr.XOR_PEER_ADDRESS)

    @pytest.mark.parametrize(("family", "size"), [(1, n) for n in range(21) if n != 8] + [(2, n) for n in range(20)])
    def test_wrong_size(self, family: int, size: int) -> None:
        assert stun.parse_xor_address((bytes([0, family]) + bytes(20))[:size], TID) is None

    def test_text_form(self) -> None:
        assert str(TransportAddress(ip_address("192.0.2.1"), 1)) == "192.0.2.1:1"
        assert str(TransportAddress(ip_address("2001:db8::1"), 1)) == "[2001:db8::1]:1"


class TestIntegrity:
    """RFC 8489 §14.5, §14.6; rules I1, I2, S5, L9."""

    def test_right_and_wrong_key(self) -> None:
        message = stun.parse(request((Attr.USERNAME, b"u"), key=KEY))
        assert message.has_integrity
        assert message.check_integrity(KEY)
        assert not message.check_integrity(WRONG_KEY)

    def test_absent_integrity_is_never_right(self) -> None:
        message = stun.parse(request())
        assert not message.has_integrity
        assert not message.check_integrity(KEY)
        assert not message.check_integrity_sha256(KEY)

    def test_both_algorithms_in_one_message(self) -> None:
        message = stun.parse(request((Attr.USERNAME, b"u"), key=KEY, sha256_key=WRONG_KEY, with_fingerprint=True))
        assert message.check_integrity(KEY)
        assert message.check_integrity_sha256(WRONG_KEY)
        assert not message.check_integrity_sha256(KEY)
        assert message.has_fingerprint

    @pytest.mark.parametrize("size", [0, 16, 20, 24, 28, 31, 33])
    def test_sha256_of_another_size_is_wrong_even_when_it_is_a_prefix(self, size: int) -> None:
        whole = request(sha256_key=KEY)[24:]
        message = stun.parse(append(request(), Attr.MESSAGE_INTEGRITY_SHA256, (whole + b"\0")[:size]))
        assert message.has_integrity_sha256
        assert not message.check_integrity_sha256(KEY)

    @pytest.mark.parametrize("size", [0, 4, 16, 19, 21])
    def test_sha1_of_another_size_is_wrong(self, size: int) -> None:
        message = stun.parse(append(request(), Attr.MESSAGE_INTEGRITY, bytes(size)))
        assert message.has_integrity
        assert not message.check_integrity(KEY)

    @pytest.mark.parametrize("options", [{"key": KEY}, {"sha256_key": KEY}, {"key": KEY, "sha256_key": KEY}])
    def test_attributes_behind_the_integrity_are_invisible_and_do_no_harm(self, options: dict[str, bytes]) -> None:
        authentic = request((Attr.USERNAME, b"u"), **options)
        message = stun.parse(append(append(authentic, Attr.LIFETIME, bytes(4)), 0x7FFF, b""))
        assert message.attributes == [(Attr.USERNAME, b"u")]
        assert message.unknown_required(frozenset({Attr.USERNAME})) == []
        assert message.check_integrity(KEY) or message.check_integrity_sha256(KEY)

    def test_sha256_behind_a_foreign_attribute_is_still_seen(self) -> None:
        tampered = append(request(key=KEY), Attr.LIFETIME, bytes(4))
        message = stun.parse(append(tampered, Attr.MESSAGE_INTEGRITY_SHA256, bytes(32)))
        assert message.has_integrity_sha256
        assert not message.check_integrity_sha256(KEY)

    def test_a_second_integrity_attribute_is_ignored(self) -> None:
        message = stun.parse(append(request(key=KEY), Attr.MESSAGE_INTEGRITY, bytes(20)))
        assert message.check_integrity(KEY)


class TestFingerprint:
    """RFC 8489 §14.7; rules I4, ICE-2."""

    def test_wrong_value(self) -> None:
        message = request(with_fingerprint=True)
        with pytest.raises(StunError):
            stun.parse(message[:-1] + bytes([message[-1] ^ 1]))

    def test_not_last(self) -> None:
        with pytest.raises(StunError):
            stun.parse(append(request(with_fingerprint=True), Attr.SOFTWARE, b"x"))

    def test_wrong_size(self) -> None:
        with pytest.raises(StunError):
            stun.parse(append(request(), Attr.FINGERPRINT, bytes(8)))


class TestResponses:
    def test_success_copies_method_transaction_and_the_habit_of_fingerprints(self) -> None:
        for with_fingerprint in (False, True):
            asked = stun.parse(request(with_fingerprint=with_fingerprint))
            answer = stun.parse(stun.success_response(asked, [(Attr.LIFETIME, stun.uint32(600))], key=KEY))
            assert (answer.method, answer.message_class) == (Method.BINDING, MessageClass.SUCCESS)
            assert answer.transaction_id == TID
            assert answer.has_fingerprint is with_fingerprint
            assert answer.check_integrity(KEY)

    def test_error_carries_code_reason_and_attributes(self) -> None:
        asked = stun.parse(request())
        unknown = stun.unknown_attributes([0x7FFF, 0x0099])
        answer = stun.parse(
            stun.error_response(
                asked, 420, "Unknown Attribute", [(Attr.UNKNOWN_ATTRIBUTES, unknown)], with_fingerprint=True
            )
        )
        assert answer.message_class == MessageClass.ERROR
        assert answer.error() == (420, "Unknown Attribute")
        assert answer.get(Attr.UNKNOWN_ATTRIBUTES) == b"\x7f\xff\x00\x99"
        assert answer.has_fingerprint

    def test_error_with_an_empty_reason_has_four_bytes(self) -> None:
        assert stun.error_code(487) == b"\0\0\4\x57"

    @pytest.mark.parametrize("value", [b"", b"\0\0\4", b"\0\0\2\0", b"\0\0\7\0", b"\0\0\4\x64", b"\0\0\4\0\xff"])
    def test_malformed_error_codes(self, value: bytes) -> None:
        message = stun.parse(stun.serialize(Method.BINDING, MessageClass.ERROR, TID, [(Attr.ERROR_CODE, value)]))
        with pytest.raises(StunAttributeError):
            message.error()


class TestOurOwnMistakes:
    def test_transaction_id_size(self) -> None:
        with pytest.raises(ValueError):
            stun.serialize(Method.BINDING, MessageClass.REQUEST, bytes(11), [])

    def test_too_many_bytes(self) -> None:
        with pytest.raises(ValueError):
            request((Attr.DATA, bytes(65000)), (Attr.DATA, bytes(65000)))


@given(
    st.integers(0, 0xFFF),
    st.integers(0, 3),
    st.binary(min_size=12, max_size=12).filter(any),
    st.lists(
        st.tuples(
            st.integers(0, 0xFFFF).filter(
                lambda a: a not in (Attr.MESSAGE_INTEGRITY, Attr.MESSAGE_INTEGRITY_SHA256, Attr.FINGERPRINT)
            ),
            st.binary(max_size=40),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_serialize_and_parse_are_inverse(
    method: int, message_class: int, transaction_id: bytes, attributes: list[tuple[int, bytes]], fingerprint: bool
) -> None:
    data = stun.serialize(
        method, message_class, transaction_id, attributes, key=KEY, sha256_key=KEY, with_fingerprint=fingerprint
    )
    message = stun.parse(data)
    assert (message.method, message.message_class) == (method, message_class)
    assert message.transaction_id == transaction_id
    assert message.attributes == attributes
    assert message.has_fingerprint is fingerprint
    assert message.check_integrity(KEY)
    assert message.check_integrity_sha256(KEY)
