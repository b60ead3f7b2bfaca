"""A light WebRTC media client for load: real ICE, DTLS, SRTP and RTCP; media that was encoded once; nothing decoded.

    async with MediaClient() as client:
        target = TorporTarget(client, "http://127.0.0.1:8787", app_id, app_secret)
        publication = await target.publish(MediaSource(video="VP8", height=720, simulcast=True))
        subscription = await target.subscribe([publication.ref])
        ...
        print(subscription.figures().video.lost_after_repair)
        await subscription.leave()

`MediaClient` owns the plane (`loadtest/_media`), one thread without the GIL that sends, receives and repairs for all
publications and subscriptions of the process. Python joins, checks consent, reads figures. Plain asyncio; no Locust.

Modules: `source` (what is sent), `clips` (encoding, cache), `payloads` (RFC 7741, 6184, 7587), `target` (servers,
behind one face) with `torpor` and `janus`, `client` and `peer` (transports), `figures` (what is counted), `pictures`
(the sampled few that are decoded), `turn` (TURN alone), `chromium` (real browsers mixed in).

End-to-end delay is measured by the sender's monotonic clock, carried in the media where no server and no decoder looks:
valid between processes of one machine only.
"""
