"""The VP8 payload descriptor (RFC 7741 4.2): its running numbers, and how they go on when the source changes (COD-1).

PictureID, TL0PICIDX and KEYIDX of a subscriber's stream grow by one over a change of source, whatever the new source
counts from. Until the first change nothing is rewritten. Only descriptor bytes are touched, so payloads may be
encrypted end to end. Every packet that is rewritten has its numbers kept in the ledger: a resend writes the same ones.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy

from sfu._dataplane.machine cimport read16, write16

# Which numbers a descriptor has. VP8_WIDE: the PictureID has 15 bits, else 7.
cdef enum:
    VP8_PICTURE = 1
    VP8_WIDE = 2
    VP8_TL0 = 4
    VP8_KEY = 8
    VP8_NUMBERS = VP8_PICTURE | VP8_TL0 | VP8_KEY

cdef struct Vp8Numbers:
    uint16_t picture
    uint8_t tl0
    uint8_t key
    uint8_t fields          # VP8_*, 0: none

cdef struct Vp8Map:
    Vp8Numbers source       # of the newest packet, as it came
    Vp8Numbers out          # the same as sent; up to date only while `rewriting`
    uint8_t rewriting       # the source changed once: `out` and `source` differ
    uint8_t joining         # VP8_*: numbers the present source has not shown yet


cdef inline int vp8_read(const uint8_t *p, int size, Vp8Numbers *numbers) noexcept nogil:
    """Size of the descriptor with its numbers; 0 and none when it is cut off."""
    cdef int at = 2
    cdef uint8_t more
    cdef bint wide
    numbers.fields = 0
    if size < 1:
        return 0
    if not p[0] & 0x80:
        return 1
    if size < 3:
        return 0 if size < 2 or p[1] & 0xF0 else 2
    more = p[1]
    wide = p[2] & 0x80 != 0     # of the PictureID, if there is one
    if 2 + ((1 + wide) if more & 0x80 else 0) + (more >> 6 & 1) + (more & 0x30 != 0) > size:
        return 0
    if more & 0x80:
        numbers.picture = read16(p + at) & 0x7FFF if wide else p[at]
        numbers.fields |= VP8_PICTURE | (VP8_WIDE if wide else 0)
        at += 1 + wide
    if more & 0x40:
        numbers.tl0 = p[at]
        numbers.fields |= VP8_TL0
        at += 1
    if more & 0x30:
        if more & 0x10:
            numbers.key = p[at] & 0x1F
            numbers.fields |= VP8_KEY
        at += 1
    return at


cdef inline int vp8_write(uint8_t *out, const uint8_t *payload, int size, const Vp8Numbers *numbers) noexcept nogil:
    """Copy a payload under other `numbers`, made of its own by `vp8_map`. Returns its size: one more if it got wider."""
    cdef Vp8Numbers own
    cdef const uint8_t *p = payload
    cdef const uint8_t *rest = payload + vp8_read(payload, size, &own)
    cdef uint8_t *q = out
    cdef uint8_t known = own.fields & VP8_NUMBERS
    if known == 0 or known & ~numbers.fields:
        memcpy(out, payload, size)
        return size
    q[0] = p[0]
    q[1] = p[1]
    p += 2
    q += 2
    if own.fields & VP8_PICTURE:
        p += 2 if own.fields & VP8_WIDE else 1
        if numbers.fields & VP8_WIDE:
            write16(q, 0x8000 | numbers.picture)
            q += 2
        else:
            q[0] = <uint8_t>(numbers.picture & 0x7F)
            q += 1
    if own.fields & VP8_TL0:
        p += 1
        q[0] = numbers.tl0
        q += 1
    if p != rest:
        q[0] = p[0] & 0xE0 | numbers.key if own.fields & VP8_KEY else p[0]
        q += 1
    memcpy(q, rest, payload + size - rest)
    return <int>(q - out + (payload + size - rest))


cdef inline void vp8_note(Vp8Numbers *newest, const Vp8Numbers *numbers) noexcept nogil:
    """Take over the numbers there are; others stay known, and a stream that was wide once stays wide."""
    if numbers.fields & VP8_PICTURE:
        newest.picture = numbers.picture
    if numbers.fields & VP8_TL0:
        newest.tl0 = numbers.tl0
    if numbers.fields & VP8_KEY:
        newest.key = numbers.key
    newest.fields |= numbers.fields


cdef inline void vp8_expect(Vp8Numbers *newest, const Vp8Numbers *first, uint8_t which) noexcept nogil:
    """Set those of `which` to one before `first`."""
    if which & VP8_PICTURE:
        newest.picture = <uint16_t>(first.picture - 1)
    if which & VP8_TL0:
        newest.tl0 = <uint8_t>(first.tl0 - 1)
    if which & VP8_KEY:
        newest.key = <uint8_t>(first.key - 1)


cdef inline void vp8_switch(Vp8Map *m) noexcept nogil:
    """The next packet is the first of another source, or of the same one that begins anew."""
    if not m.rewriting:
        m.out = m.source
        m.rewriting = m.out.fields != 0
    m.joining = VP8_NUMBERS


cdef inline void vp8_map(Vp8Map *m, const Vp8Numbers *numbers, bint late, Vp8Numbers *sent) noexcept nogil:
    """COD-1: the numbers a packet goes out under. `late`: it is older than the newest packet sent."""
    cdef uint8_t joins = numbers.fields & m.joining
    cdef bint wide
    cdef int half, steps
    if not m.rewriting:
        sent.fields = 0
        if not late:
            m.source = numbers[0]
        return
    if joins:
        m.joining &= ~joins
        vp8_expect(&m.source, numbers, joins)
        vp8_expect(&m.out, numbers, joins & ~m.out.fields)
        m.out.fields |= joins
    wide = (numbers.fields | m.out.fields) & VP8_WIDE
    # Pictures since the newest packet, negative for a late one. A shift would not do: a narrow source wraps earlier.
    half = 0x4000 if numbers.fields & VP8_WIDE else 0x40
    steps = ((numbers.picture - m.source.picture + half) & (2 * half - 1)) - half
    sent.fields = numbers.fields | (VP8_WIDE if wide else 0)
    sent.picture = <uint16_t>((m.out.picture + steps) & (0x7FFF if wide else 0x7F))
    sent.tl0 = <uint8_t>(m.out.tl0 + numbers.tl0 - m.source.tl0)
    sent.key = <uint8_t>((m.out.key + numbers.key - m.source.key) & 0x1F)
    if not late:
        vp8_note(&m.source, numbers)
        vp8_note(&m.out, sent)
