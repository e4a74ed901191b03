"""No change of a recording goes unseen, and the first message that it touched is named."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard
from mcap.opcode import Opcode

from ncp_rl.recording import (
    Recording,
    RecordingError,
    Verification,
    generate_key,
    read_private_key,
    read_public_key,
    verify,
)
from ncp_rl.recording.chain import Chain, with_checksum
from ncp_rl.recording.container import Container
from ncp_rl.recording.encode import Messages
from ncp_rl.recording.layout import Layout
from ncp_rl.recording.records import (
    decompress,
    parse_attachment,
    parse_chunk,
    parse_messages,
    parse_metadata,
    walk_records,
)
from tests.recording.recordings import pendulum_recording


class Files(NamedTuple):
    plain: bytes
    signed: bytes
    key: Path
    public: Path
    folder: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("verify")
    public = generate_key(folder / "key.pem")
    pendulum_recording(folder / "plain.mcap")
    pendulum_recording(folder / "signed.mcap", sign_key=read_private_key(folder / "key.pem"))
    plain, signed = ((folder / name).read_bytes() for name in ("plain.mcap", "signed.mcap"))
    return Files(plain, signed, folder / "key.pem", public, folder)


def check(files: Files, data: bytes, public: Path | None = None) -> Verification:
    path = files.folder / "changed.mcap"
    path.write_bytes(data)
    return verify(path, None if public is None else read_public_key(public))


def regions(data: bytes, folder: Path) -> dict[str, list[range]]:
    """Bytes of the file by kind of record; magic too."""
    path = folder / "regions.mcap"
    path.write_bytes(data)
    found: dict[str, list[range]] = {"magic": [range(8), range(len(data) - 8, len(data))]}
    with path.open("rb") as file:
        for record in walk_records(file, len(data)):
            found.setdefault(Opcode(record.opcode).name, []).append(range(record.offset, record.offset + record.length))
    return found


def test_untouched_files_are_intact(files: Files) -> None:
    plain, signed = check(files, files.plain), check(files, files.signed, files.public)
    assert (plain.status, plain.passed, plain.signature, plain.n_messages) == ("intact", True, "none", 3 * 800 + 8)
    assert (signed.status, signed.passed, signed.signature) == ("intact", True, "valid")
    assert "anyone who rewrites the whole file can compute a new chain" in str(plain)
    assert check(files, files.signed).signature == "unchecked"
    json.dumps(signed.to_dict(), allow_nan=False)


def test_keys_and_signatures(files: Files, tmp_path: Path) -> None:
    other = generate_key(tmp_path / "other.pem")
    assert (tmp_path / "other.pem").stat().st_mode & 0o077 == 0
    assert not check(files, files.signed, other).passed
    assert check(files, files.signed, other).signature == "of another key"
    assert check(files, files.plain, files.public).signature == "missing"
    assert not check(files, files.plain, files.public).passed
    with pytest.raises(RecordingError, match="exists"):
        generate_key(tmp_path / "other.pem")
    (tmp_path / "nonsense.pem").write_text("nonsense")
    for read in (read_private_key, read_public_key):
        for name in ("nonsense.pem", "missing.pem"):
            with pytest.raises(RecordingError):
                read(tmp_path / name)
    with pytest.raises(RecordingError):
        read_private_key(other)


def test_every_region_and_hundreds_of_random_edits(files: Files) -> None:
    """Flipped bits, changed, removed and added bytes in every kind of record."""
    rng = random.Random(0)
    for data in (files.plain, files.signed):
        places = [
            rng.choice(rng.choice(ranges)) for ranges in regions(data, files.folder).values() for _ in range(8)
        ] + [rng.randrange(len(data)) for _ in range(60)]
        for at in places:
            edits: list[Callable[[bytearray], None]] = [
                lambda b, at=at: b.__setitem__(at, b[at] ^ 1 << rng.randrange(8)),  # type: ignore[misc]
                lambda b, at=at: b.__delitem__(slice(at, at + rng.randint(1, 40))),  # type: ignore[misc]
                lambda b, at=at: b.insert(at, rng.randrange(256)),  # type: ignore[misc]
            ]
            changed = bytearray(data)
            rng.choice(edits)(changed)
            if changed != data:
                verification = check(files, bytes(changed))
                assert verification.status != "intact", (at, verification)
                assert verification.detail


def test_every_bit_of_seal_and_footer(files: Files) -> None:
    found = regions(files.signed, files.folder)
    for region in (found["METADATA"][-1], found["FOOTER"][-1]):
        for at in region:
            changed = bytearray(files.signed)
            changed[at] ^= 1 << (at % 8)
            assert check(files, bytes(changed)).status == "damaged"


def test_cuts(files: Files) -> None:
    found = regions(files.plain, files.folder)
    chunks = found["CHUNK"]
    seal = found["METADATA"][-1].start
    for cut in (seal, seal + 10, chunks[-1].start, chunks[-1].start + 1, chunks[-1].stop):
        verification = check(files, files.plain[:cut])
        assert verification.status == "unfinished" and "missing" in verification.detail
        assert len(Recording.open(files.folder / "changed.mcap")) <= 4
    for cut in (len(files.plain) - 1, found["FOOTER"][0].start, found["STATISTICS"][0].start):
        assert check(files, files.plain[:cut]).status == "damaged"
    for cut in (0, 5, 8, 100):
        assert check(files, files.plain[:cut]).status == "damaged"


def careful(
    data: bytes,
    edit: Callable[[list[bytes]], None] = lambda texts: None,
    *,
    rechained: bool = False,
    manifest: Any = None,
    attachment: Callable[[str, bytes], bytes] = lambda name, content: content,
    entry: Callable[[str, dict[str, str]], None] = lambda name, entries: None,
) -> bytes:
    """The recording with other messages, and all that belongs to them written anew: checksums, indexes, summary.

    Those who do not know the chain leave its records as they are; those who do compute them too.
    """
    container = Container()
    attachments: dict[str, bytes] = {}
    records = list(walk_records(io.BytesIO(data), len(data)))
    raw = {record: data[record.offset : record.offset + record.length] for record in records}
    for record in records:
        if record.opcode == Opcode.ATTACHMENT:
            found = parse_attachment(raw[record])
            attachments[found.name] = attachment(found.name, found.data)
    if manifest is not None:
        attachments["manifest.json"] = manifest(attachments["manifest.json"])
    try:
        layout = Layout.from_dict(json.loads(attachments["manifest.json"])["layout"])
    except (KeyError, RecordingError, TypeError, ValueError):  # Nobody can make channels of it.
        layout = Layout.from_dict(json.loads(original_manifest(data))["layout"])
    out = container.begin(layout, attachments)
    chain = Chain(out)
    links = b""
    for record in records:
        if record.opcode == Opcode.CHUNK:
            old = parse_messages(decompress(parse_chunk(raw[record])))
            texts = [bytes(old.data[a:b]) for a, b in zip(old.offsets, old.offsets[1:], strict=False)]
            edit(texts)
            messages: Messages = parse_messages(b"".join(texts))
            chunk = container.chunk(messages, "zstd", zstandard.compress(messages.data))
            chain.add_bytes(chunk)
            links = chain.extend(messages)
            out += chunk
        elif record.opcode == Opcode.METADATA:
            metadata = parse_metadata(raw[record])
            entries = dict(metadata.metadata)
            if rechained:
                del entries["sha256"]
                entries |= chain.state() | ({"links": links.hex()} if "links" in entries else {})
                entry(metadata.name, entries)
                if metadata.name == "beginning":
                    entries |= {name: sha256(d).hexdigest() for name, d in attachments.items()}
                unsigned = {k: v for k, v in entries.items() if k not in ("signature", "public_key")}
                entries = with_checksum(metadata.name, unsigned)
            written = container.metadata(metadata.name, entries)
            chain.add_bytes(written)
            out += written
    return out + container.end()


def original_manifest(data: bytes) -> bytes:
    """The first attachment of a recording."""
    record = next(r for r in walk_records(io.BytesIO(data), len(data)) if r.opcode == Opcode.ATTACHMENT)
    return parse_attachment(data[record.offset : record.end]).data


def nth(edit: Callable[[list[bytes]], None]) -> Callable[[list[bytes]], None]:
    """Apply `edit` to the first chunk alone."""
    chunks: list[int] = []

    def once(texts: list[bytes]) -> None:
        chunks.append(1)
        if len(chunks) == 1:
            edit(texts)

    return once


def transition(texts: list[bytes]) -> int:
    """A message with a reward; how many episodes begin before it depends on when the writer came by."""
    return next(i for i in range(30, len(texts)) if b'"reward":-' in texts[i])


def falsify(texts: list[bytes]) -> None:
    """Another reward, of the same length."""
    at = transition(texts)
    texts[at] = texts[at].replace(b'"reward":-', b'"reward": ')


EDITS: dict[str, tuple[Callable[[list[bytes]], None], int]] = {
    "changed": (falsify, 0),
    "removed": (lambda texts: texts.__delitem__(20), 20),
    "last removed": (lambda texts: texts.__delitem__(-1), -1),
    "repeated": (lambda texts: texts.insert(21, texts[20]), 21),
    "swapped": (lambda texts: texts.__setitem__(slice(20, 22), texts[20:22][::-1]), 20),
    "repeated at the end": (lambda texts: texts.append(texts[-1]), -1),
}


@pytest.mark.parametrize("name", EDITS)
def test_careful_edits_are_located(name: str, files: Files) -> None:
    edit, expected = EDITS[name]
    chunks: list[list[bytes]] = []
    careful(files.plain, lambda texts: chunks.append(list(texts)))
    verification = check(files, careful(files.plain, nth(edit)))
    if name == "changed":
        expected = transition(chunks[0])
    elif expected < 0:
        expected = len(chunks[0]) - (name == "last removed")
    assert (verification.status, verification.first_bad) == ("damaged", expected), verification
    assert verification.n_messages == expected or expected >= len(chunks[0]) - 1


def test_another_manifest_or_circuit(files: Files) -> None:
    def other(manifest: bytes) -> bytes:
        return manifest.replace(b'"seed": 0', b'"seed": 7')

    changed = careful(files.plain, lambda texts: None, manifest=other)
    verification = check(files, changed)
    assert (verification.status, verification.first_bad) == ("damaged", 0)
    assert "manifest.json was changed" in verification.detail
    # In place, with its checksum corrected.
    for name in ("circuit.safetensors", "circuit.json"):
        data = bytearray(files.plain)
        for region in regions(files.plain, files.folder)["ATTACHMENT"]:
            attachment = parse_attachment(files.plain[region.start : region.stop])
            if attachment.name == name:
                data[region.stop - 10] ^= 1
                crc = zlib.crc32(data[region.start + 9 : region.stop - 4])
                data[region.stop - 4 : region.stop] = struct.pack("<I", crc)
        assert f"{name} was changed" in check(files, bytes(data)).detail


def test_a_forgery_chained_anew_shows_by_its_signature_alone(files: Files) -> None:
    unchanged = careful(files.signed, lambda texts: None, rechained=True)
    forged = careful(files.signed, nth(falsify), rechained=True)
    for data in (unchanged, forged):
        assert check(files, data).status == "intact"
        assert not check(files, data, files.public).passed
        assert check(files, data, files.public).signature == "missing"


def test_the_counts_of_seal_and_chunks_are_those_of_the_messages(files: Files) -> None:
    """A list of episodes, or a number of them, that the messages do not make, with all checksums computed anew."""

    def seal(name: str, entries: dict[str, str]) -> None:
        if name == "seal":
            entries["episodes"] = str(int(entries["episodes"]) + 1)

    def listed(name: str, entries: dict[str, str]) -> None:
        if name == "chunk":
            spans = json.loads(entries["episodes"])
            spans[-1][-1] += 1
            entries["episodes"] = json.dumps(spans, separators=(",", ":"))

    assert check(files, careful(files.plain, rechained=True)).status == "intact"
    for entry, detail in (
        (seal, "the seal counts '5' episodes, but the messages make 4"),
        (listed, "the list of their episodes"),
    ):
        verification = check(files, careful(files.plain, rechained=True, entry=entry))
        assert verification.status == "damaged" and detail in verification.detail
        with pytest.raises(RecordingError, match="call verify"):
            recording = Recording.open(files.folder / "changed.mcap")
            [recording[i] for i in range(len(recording))]


def test_a_signature_of_another_recording(files: Files) -> None:
    """The seal of the signed file does not fit another file, even by the same key."""
    seal, own = (regions(data, files.folder)["METADATA"][-1] for data in (files.signed, files.plain))
    stolen = files.plain[: own.start] + files.signed[seal.start : seal.stop] + files.plain[own.stop :]
    assert check(files, stolen, files.public).status == "damaged"


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="cannot be read"):
        verify(tmp_path / "missing.mcap")
    with pytest.raises(RecordingError, match="cannot be read"):
        verify(tmp_path)
