"""Files of electrocardiographs and archives: real ones against decoders of our own, generated ones where none is at
hand."""

import base64
import struct
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from hf_ecgmamba.recording import open_recording, read_recording
from hf_ecgmamba.recording_channels import STANDARD_LEADS
from tests.hf_ecgmamba.signals import waves

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("ecgdatakit")


def check(path, signal, leads, rate):
    recording = read_recording(path)
    assert recording.leads == tuple(leads) and recording.sampling_rate == rate
    np.testing.assert_allclose(recording.signal, signal, rtol=1e-6, atol=1e-9)
    return recording


# -- real files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aecg_fda_subject1_0.xml", "biosig_synthetic12_aecg.xml"])
def test_aecg(ecg, name):
    tag = "{urn:hl7-org:v3}"
    series = next(ElementTree.parse(ecg / "clinical" / name).iter(f"{tag}series"))
    leads, rows = [], []
    for sequence in next(series.iter(f"{tag}sequenceSet")).iter(f"{tag}sequence"):
        code, value = sequence.find(f"{tag}code").get("code"), sequence.find(f"{tag}value")
        if value.find(f"{tag}digits") is not None:
            origin, scale = (float(value.find(tag + part).get("value")) for part in ("origin", "scale"))
            assert value.find(f"{tag}scale").get("unit") == "uV"
            leads.append(code.removeprefix("MDC_ECG_LEAD_").replace("AV", "aV"))
            rows.append((np.array(value.find(f"{tag}digits").text.split(), float) * scale + origin) / 1000)
    assert len(rows) == 12
    check(ecg / "clinical" / name, np.stack(rows), leads, 500)


def test_dicom_takes_the_rhythm_not_the_averaged_beats(ecg):
    path = ecg / "clinical" / "pydicom_waveform_ecg.dcm"
    content = path.read_bytes()
    data = pydicom.dcmread(path).WaveformSequence[0].WaveformData
    assert data in content
    check(path, np.frombuffer(data, "<i2").reshape(10000, 12).T * 1.25e-3, STANDARD_LEADS, 1000)


def unpacked_sierra(path):
    """The counts [12, time] of a Philips file: LZW of ten bits, second differences, limb leads as what is left of
    their prediction (after the description in sierraecg-tools)."""
    node = next(node for node in ElementTree.parse(path).iter() if node.tag.endswith("parsedwaveforms"))
    content, place, leads = base64.b64decode("".join(node.text.split())), 0, []
    while place + 8 <= len(content) and len(leads) < 12:
        size, _, start = struct.unpack_from("<ihh", content, place)
        packed, place = content[place + 8 : place + 8 + size], place + 8 + size
        codes, buffer, bits = [], 0, 0
        for byte in packed:
            buffer, bits = buffer << 8 | byte, bits + 8
            if bits >= 10:
                bits -= 10
                codes.append(buffer >> bits & 1023)
        table, out, last = {k: bytes([k]) for k in range(256)}, bytearray(), b""
        for code in codes:
            if code == 1023:  # the end
                break
            entry = table[code] if code in table else last + last[:1]
            out += entry
            if last and len(table) < 1023:
                table[len(table)] = last + entry[:1]
            last = entry
        half = len(out) // 2
        steps = (np.frombuffer(bytes(out[:half]), np.int8).astype(int) << 8) | np.frombuffer(
            bytes(out[half : 2 * half]), np.uint8
        )
        values, last = [int(steps[0]), int(steps[1])], start
        for k in range(2, len(steps)):
            values.append(2 * values[-1] - values[-2] - last)
            last = int(steps[k]) - 64
        leads.append(values)
    x = np.array([values[:5500] for values in leads])
    x[2] = x[1] - x[0] - x[2]
    x[3] = -x[3] - (x[0] + x[1]) // 2
    x[4] = (x[0] - x[2]) // 2 - x[4]
    x[5] = (x[1] + x[2]) // 2 - x[5]
    return x


@pytest.mark.parametrize(("name", "samples"), [("1_03", 5264), ("1_04", 5300), ("1_04_01", 5300)])
def test_sierra_without_its_calibration_pulse(ecg, name, samples):
    path = ecg / "clinical" / f"sierra_{name}.xml"
    counts = unpacked_sierra(path)
    assert counts.shape == (12, 5500) and np.ptp(counts[:, samples:], axis=0).max() == 0
    recording = check(path, counts[:, :samples] * 5e-3, STANDARD_LEADS, 500)
    assert recording.notes == (f"the calibration pulse at its end cut off, {(5500 - samples) / 500:.3f} s",)


def test_scp_is_the_aecg_of_the_same_heart(ecg):
    recording = read_recording(ecg / "clinical" / "synthetic8.scp")
    reference = read_recording(ecg / "clinical" / "biosig_synthetic12_aecg.xml")
    rows = [reference.leads.index(lead) for lead in recording.leads]
    assert recording.leads == ("I", "II", *STANDARD_LEADS[6:]) and recording.sampling_rate == 500
    np.testing.assert_allclose(recording.signal, reference.signal[rows], atol=2.6e-3 / 2 + 1e-4)  # 2.5 uV a count
    counts = np.frombuffer(sections_of(ecg / "clinical" / "synthetic8.scp")[6][22 + 16 :], "<i2").reshape(8, -1)
    np.testing.assert_allclose(recording.signal, counts * 2.5e-3, atol=1e-9, rtol=1e-6)


def test_ishne(ecg):
    path = ecg / "clinical" / "synthetic3.ecg"
    content = path.read_bytes()
    (offset,) = struct.unpack_from("<i", content, 10 + 8 + 4)
    counts = np.frombuffer(content[offset:], "<i2").reshape(-1, 3).T
    check(path, counts * 2.5e-3, ("II", "V1", "V5"), 500)


# -- generated files --------------------------------------------------------------------------------------------------


def sections_of(path):
    """The sections of an SCP-ECG file by their number, each with its header of 16 bytes."""
    content, place, sections = path.read_bytes(), 6, {}
    while place < len(content):
        number, size = struct.unpack_from("<Hi", content, place + 2)
        sections[number] = content[place : place + size]
        place += size
    return sections


def crc(content):
    value = 0xFFFF
    for byte in content:
        value ^= byte << 8
        for _ in range(8):
            value = (value << 1 ^ (0x1021 if value & 0x8000 else 0)) & 0xFFFF
    return value


def compressed(counts):
    """Second differences in the default Huffman code of EN 1064: 1, 3, 4 ... bits for 0, +-1, +-2 ... +-8."""
    steps = np.array(counts, int)
    steps[2:] = counts[2:] - 2 * counts[1:-1] + counts[:-2]
    bits = []
    for step in steps.tolist():
        if step == 0:
            bits.append("0")
        elif abs(step) <= 8:
            bits.append("1" * abs(step) + "0" + ("0" if step > 0 else "1"))
        elif -128 <= step < 128:
            bits.append("1111111110" + format(step & 0xFF, "08b"))
        else:
            bits.append("1111111111" + format(step & 0xFFFF, "016b"))
    text = "".join(bits)
    text += "0" * (-len(text) % 16)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def test_compressed_scp_is_the_one_that_is_not(ecg, tmp_path):
    plain = ecg / "clinical" / "synthetic8.scp"
    sections = sections_of(plain)
    counts = np.frombuffer(sections[6][38:], "<i2").reshape(8, -1).astype(int)
    rows = [compressed(row) for row in counts]
    head = bytearray(sections[6][16:22])
    head[4:6] = bytes([2, 0])  # second differences, not bimodal
    new = {
        2: struct.pack("<H", 19999),
        6: bytes(head) + struct.pack("<8H", *map(len, rows)) + b"".join(rows),
    }
    body, pointers, place = b"", [], 7  # section 0 comes first
    order = sorted({*sections, 2} - {0})
    parts = {}
    for number in order:
        content = new.get(number, sections[number][16:] if number in sections else b"")
        content += b"\0" * (len(content) % 2)
        part = struct.pack("<HiBB6s", number, len(content) + 16, 20, 20, b"\0" * 6) + content
        parts[number] = struct.pack("<H", crc(part)) + part
    listed = [0, *range(1, 12)]
    size = 16 + 10 * len(listed)
    place = 7 + size
    for number in listed:
        length = size if number == 0 else len(parts.get(number, b""))
        pointers.append(struct.pack("<HII", number, length, (7 if number == 0 else place) if length else 0))
        if number in parts:
            body, place = body + parts[number], place + length
    part = struct.pack("<HiBB6s", 0, size, 20, 20, b"SCPECG") + b"".join(pointers)
    body = struct.pack("<H", crc(part)) + part + body
    body = struct.pack("<I", len(body) + 6) + body
    (tmp_path / "small.scp").write_bytes(struct.pack("<H", crc(body)) + body)
    np.testing.assert_array_equal(read_recording(tmp_path / "small.scp").signal, read_recording(plain).signal)
    assert (tmp_path / "small.scp").stat().st_size < 0.7 * plain.stat().st_size


def muse(counts, medians, rate=500, gain="4.88"):
    def waveform(kind, rows, bits=16):
        leads = "".join(
            f"<LeadData><LeadByteCountTotal>{2 * len(row)}</LeadByteCountTotal><LeadTimeOffset>0</LeadTimeOffset>"
            f"<LeadSampleCountTotal>{len(row)}</LeadSampleCountTotal><LeadAmplitudeUnitsPerBit>{gain}"
            "</LeadAmplitudeUnitsPerBit><LeadAmplitudeUnits>MICROVOLTS</LeadAmplitudeUnits>"
            f"<LeadID>{lead}</LeadID><LeadSampleSize>2</LeadSampleSize><WaveFormData>"
            f"{base64.b64encode(row.astype('<i2').tobytes()).decode()}</WaveFormData></LeadData>"
            for lead, row in zip(("I", "II", *STANDARD_LEADS[6:]), rows, strict=True)
        )
        return (
            f"<Waveform><WaveformType>{kind}</WaveformType><NumberofLeads>{len(rows)}</NumberofLeads><SampleType>"
            f"CONTINUOUS_SAMPLES</SampleType><SampleBase>{rate}</SampleBase><SampleExponent>0</SampleExponent>{leads}"
            "</Waveform>"
        )

    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<!DOCTYPE RestingECG SYSTEM "restecg.dtd">\n<RestingECG>'
        f"<MuseInfo><MuseVersion>8.0.2</MuseVersion></MuseInfo>{waveform('Median', medians)}"
        f"{waveform('Rhythm', counts)}</RestingECG>"
    )


def test_muse_takes_the_rhythm_not_the_averaged_beats(tmp_path):
    counts = np.round(waves(8, 5000) * 200).astype(int)
    (tmp_path / "muse.xml").write_text(muse(counts, counts[:, :600] * 3))
    recording = read_recording(tmp_path / "muse.xml")
    rows = [recording.leads.index(lead) for lead in ("I", "II", *STANDARD_LEADS[6:])]
    assert recording.signal.shape[1] == 5000 and recording.sampling_rate == 500
    np.testing.assert_allclose(recording.signal[rows], counts * 4.88e-3, rtol=1e-6)


def dicom(path, groups):
    """A 12-lead ECG object with these groups: a dict of the attributes that differ."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.9.1.1", pydicom.uid.generate_uid()
    dataset.WaveformSequence = []
    for leads, counts, further in groups:
        group = pydicom.Dataset()
        group.WaveformOriginality, group.MultiplexGroupLabel = "ORIGINAL", "RHYTHM"
        group.NumberOfWaveformSamples, group.NumberOfWaveformChannels = counts.shape[1], counts.shape[0]
        group.SamplingFrequency, group.WaveformBitsAllocated, group.WaveformSampleInterpretation = "500", 16, "SS"
        group.ChannelDefinitionSequence = []
        for lead in leads:
            channel, source, unit = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
            source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = lead
            unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "uV", "UCUM", "microvolt"
            channel.ChannelSourceSequence, channel.ChannelSensitivityUnitsSequence = [source], [unit]
            channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor = "2.5", "1"
            channel.ChannelBaseline, channel.WaveformBitsStored = "10", 16
            group.ChannelDefinitionSequence.append(channel)
        group.add_new(0x5400100A, "OW", struct.pack("<h", -32768))
        group.add_new(0x54001010, "OW", counts.T.astype("<i2").tobytes())
        for name, value in further.items():
            setattr(group, name, value)
        dataset.WaveformSequence.append(group)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def test_dicom_padding_is_missing_and_leads_go_by_code(tmp_path):
    counts = np.round(waves(2, 1000) * 300).astype(int)
    counts[1, 400:450] = -32768
    leads = [("2:1", "MDC", "first limb lead"), ("2:62", "MDC", "aVR, augmented voltage, right")]
    medians = (leads, counts[:, :300], {"WaveformOriginality": "DERIVED", "MultiplexGroupLabel": "MEDIAN BEAT"})
    dicom(tmp_path / "a.dcm", [medians, (leads, counts, {})])
    expected = (counts * 2.5 + 10) / 1000
    expected[1, 400:450] = np.nan
    check(tmp_path / "a.dcm", expected, ("I", "aVR"), 500)
    dicom(tmp_path / "b.dcm", [medians])
    with pytest.raises(ValueError, match=r"b\.dcm holds no original ECG, only averaged beats"):
        read_recording(tmp_path / "b.dcm")


def test_dicom_groups_that_follow_one_another_are_a_page(tmp_path):
    counts = np.round(waves(4, 1250) * 300).astype(int)
    names = [[(f"x{k}", "99", lead)] for k, lead in enumerate(("Lead I (Einthoven)", "Lead II", "Lead V1", "V2"))]
    offsets = [{"MultiplexGroupTimeOffset": str(2500 * k)} for k in range(4)]
    dicom(tmp_path / "page.dcm", [(lead, counts[[k]], offsets[k]) for k, lead in enumerate(names)])
    expected = np.full((4, 5000), np.nan)
    for k in range(4):
        expected[k, 1250 * k : 1250 * (k + 1)] = (counts[k] * 2.5 + 10) / 1000
    check(tmp_path / "page.dcm", expected, ("I", "II", "V1", "V2"), 500)


# -- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.dcm", "a.xml", "a.scp", "a.ecg"])
@pytest.mark.parametrize(
    "content", [b"", b"<?xml version='1.0'?><a/>", b"\0" * 128 + b"DICM" + b"\7" * 50, b"ISHNE1.0abc"]
)
def test_damaged_files_are_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError)) as caught:
        read_recording(tmp_path / name)
    assert "\n" not in str(caught.value) and "a" in str(caught.value)


def test_cut_files_are_refused_in_one_line(ecg, tmp_path):
    for path in sorted((ecg / "clinical").iterdir()):
        content = path.read_bytes()
        for length in (40, 600, len(content) // 2):
            (tmp_path / path.name).write_bytes(content[:length])
            try:
                read_recording(tmp_path / path.name)
            except (ValueError, OSError) as error:
                assert "\n" not in str(error) and path.stem in str(error)


@pytest.mark.parametrize(
    ("name", "package"),
    [("pydicom_waveform_ecg.dcm", "pydicom"), ("sierra_1_03.xml", "ecgdatakit"), ("synthetic8.scp", "ecgdatakit")],
)
def test_without_the_extra_the_message_names_it(ecg, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{name} cannot be read without {package}: .*\[clinical\]"):
        open_recording(ecg / "clinical" / name)
