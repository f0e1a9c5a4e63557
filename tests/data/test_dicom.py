import concurrent.futures
import io
import logging
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi_lut,
    convert_color_space,
    get_decoder,
    pixel_array,
)
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit

from medinit_jax.core.errors import UsageError
from medinit_jax.data import dicom, dicom_file
from medinit_jax.data.codestream import frame_size
from medinit_jax.data.decode import DecodeError, decode
from medinit_jax.data.folder import FolderSource

PACKAGE = Path(pytest.importorskip("data_store").__file__).parent / "data"
OWN = Path(pydicom.__file__).parent / "data/test_files"
# Cut short, or no image at all.
REFUSED = {
    "emri_small_jpeg_2k_lossless_too_short.dcm": "cut short before its first element",
    "MR_truncated.dcm": "pixel data is cut short: 8130 of 8192 bytes",
    "rtplan.dcm": "holds no image.*RT Plan",
    "rtplan_truncated.dcm": "holds no image",
    "rtstruct.dcm": "holds no image",
    "test-SR.dcm": "holds no image",
    "reportsi.dcm": "holds no image",
    "reportsi_with_empty_number_tags.dcm": "holds no image",
    "waveform_ecg.dcm": "holds no image",
    "UN_sequence.dcm": "holds no image",
    "nested_priv_SQ.dcm": "0 x 0 x 1 is out of range|holds no",
    "priv_SQ.dcm": "0 x 0 x 1 is out of range|holds no",
    "ExplVR_BigEndNoMeta.dcm": "holds no image",
    "ExplVR_LitEndNoMeta.dcm": "holds no image",
    "no_meta.dcm": "not a DICOM file",
    "no_meta_group_length.dcm": "holds no image",
    "meta_missing_tsyntax.dcm": "0 x 0 x 1 is out of range",
    "empty_charset_LEI.dcm": "holds no image",
    "badVR.dcm": "NumberOfFrames is '1A'",
    "JPEG2000-embedded-sequence-delimiter.dcm": "the compressed image is",
}
# JPEG of 12 bits needs a plugin under a license that the [dicom] extra leaves out.
PLUGIN = {"JPEG-lossy.dcm", "JPGExtended.dcm", "GDCMJ2K_TextGBR.dcm"}


def quiet(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, force=True, **options)


def decoder_is_missing(path):
    syntax = quiet(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
    return syntax.is_encapsulated and not get_decoder(syntax).is_available


def test_the_package_is_whole():
    assert len(list(PACKAGE.glob("*.dcm"))) == 68


@pytest.mark.parametrize(
    "path", sorted([*PACKAGE.glob("*.dcm"), *OWN.glob("*.dcm")]), ids=lambda path: path.name
)
def test_every_file_is_read_or_refused_with_a_sentence(path, capfd, caplog):
    try:
        image = dicom.decode_dicom(path)
    except DecodeError as error:
        reason = str(error)
        assert capfd.readouterr().err == "" and not caplog.records
        assert len(reason) > 15 and "\n" not in reason
        if path.name in REFUSED:
            assert pytest.raises(DecodeError, dicom.decode_dicom, path).match(REFUSED[path.name])
        elif path.name not in PLUGIN:
            assert decoder_is_missing(path) and "pip install medinit_jax[dicom]" in reason
    else:
        assert capfd.readouterr().err == "" and not caplog.records
        assert path.name not in REFUSED
        header = quiet(path, stop_before_pixels=True)
        assert image.dtype == np.uint8 and image.shape == (header.Rows, header.Columns, 3)
        assert image.min() < image.max()


def test_color_is_that_of_pydicom():
    for name in ("SC_rgb.dcm", "SC_rgb_gdcm2k_uncompressed.dcm", "US1_UNCR.dcm"):
        expected = quiet(PACKAGE / name).pixel_array
        np.testing.assert_array_equal(dicom.decode_dicom(PACKAGE / name), expected)
    stored = pixel_array(PACKAGE / "SC_ybr_full_uncompressed.dcm", raw=True)
    expected = convert_color_space(stored, "YBR_FULL", "RGB")
    image = dicom.decode_dicom(PACKAGE / "SC_ybr_full_uncompressed.dcm")
    np.testing.assert_array_equal(image, expected)
    deep = quiet(PACKAGE / "SC_rgb_16bit_2frame.dcm").pixel_array
    for frame in range(2):
        image = dicom.decode_dicom(PACKAGE / "SC_rgb_16bit_2frame.dcm", frame)
        np.testing.assert_array_equal(image, deep[frame] >> 8)
    face = quiet(PACKAGE / "OBXXXX1A.dcm")
    np.testing.assert_array_equal(
        dicom.decode_dicom(PACKAGE / "OBXXXX1A.dcm"),
        apply_color_lut(face.pixel_array, face) >> 8,
    )


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("OBXXXX1A.dcm", ("OBXXXX1A_expb.dcm", "OBXXXX1A_rle.dcm", "OBXXXX1A_2frame.dcm")),
        ("SC_rgb.dcm", ("SC_rgb_expb.dcm", "SC_rgb_32bit.dcm")),
        ("color-pl.dcm", ("color-px.dcm",)),
        ("emri_small.dcm", ("emri_small_RLE.dcm", "emri_small_jpeg_2k_lossless.dcm")),
        ("gdcm-US-ALOKA-16.dcm", ("gdcm-US-ALOKA-16_big.dcm",)),
        ("US1_UNCR.dcm", ("US1_J2KR.dcm",)),
        ("RG3_UNCR.dcm", ("RG3_J2KR.dcm",)),
        ("liver.dcm", ("liver_expb.dcm",)),
    ],
)
def test_one_image_in_several_transfer_syntaxes(name, same):
    image = dicom.decode_dicom(PACKAGE / name)
    for other in same:
        np.testing.assert_array_equal(dicom.decode_dicom(PACKAGE / other), image, err_msg=other)


def test_windows_and_tables_are_those_of_pydicom():
    for name in ("RG3_UNCR.dcm", "vlut_04.dcm", "693_UNCR.dcm"):
        dataset = quiet(PACKAGE / name)
        values = apply_modality_lut(dataset.pixel_array, dataset)
        shown = apply_voi_lut(values, dataset).astype(float)
        bottom, top = 0, (1 << dataset.BitsStored) - 1
        if dataset.get("VOILUTSequence"):
            top = (1 << dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        elif dataset.PixelRepresentation:
            # pydicom's windows fill the range of the stored values, rescaled.
            bottom, top = -8192 - 1024, 8191 - 1024
        gray = np.rint((shown - bottom) * 255 / (top - bottom))
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            gray = 255 - gray
        # A half may be rounded either way.
        np.testing.assert_allclose(dicom.decode_dicom(PACKAGE / name)[..., 0], gray, atol=1)


def test_hounsfield_units_of_a_real_ct():
    dataset = quiet(OWN / "CT_small.dcm")
    assert (dataset.RescaleSlope, dataset.RescaleIntercept) == (1, -1024)
    hu = dicom.hounsfield(dicom_file.read(OWN / "CT_small.dcm"))
    assert hu.dtype == np.int16
    np.testing.assert_array_equal(hu, dataset.pixel_array.astype(int) - 1024)
    with pytest.raises(DecodeError, match="color image"):
        dicom.hounsfield(dicom_file.read(PACKAGE / "SC_rgb.dcm"))


def test_window_by_hand():
    hu = np.array([[-100, 0, 40, 60, 80, 3000]], np.int16)
    np.testing.assert_array_equal(dicom.window(hu, 40, 80), [[0, 0, 0.5, 0.75, 1, 1]])
    assert dicom.window(hu, 40, 80).dtype == np.float32


def made(pixels, **elements):
    """A CT slice as bytes; elements are added or, with None, removed."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    for name, value in elements.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


RAMP = np.arange(256, dtype=np.int16).reshape(16, 16)


def test_rules_for_gray_by_hand():
    eight = RAMP.astype(np.uint8)
    np.testing.assert_array_equal(dicom.decode_dicom(made(eight))[..., 0], eight)
    np.testing.assert_array_equal(
        dicom.decode_dicom(made(eight, PhotometricInterpretation="MONOCHROME1"))[..., 1],
        255 - eight,
    )
    np.testing.assert_array_equal(
        dicom.decode_dicom(made(eight // 4, BitsStored=6, HighBit=5))[..., 0],
        np.rint((eight // 4) / 63 * 255),
    )
    several = made(
        RAMP * 10,
        RescaleSlope="0.5",
        RescaleIntercept="-100",
        WindowCenter=["100.5", "7"],
        WindowWidth=["201", "1"],
    )
    share = np.clip((RAMP * 5.0 - 100) / 200, 0, 1)
    shown = dicom.decode_dicom(several)[..., 2]
    np.testing.assert_allclose(shown, share * 255, atol=0.51)
    exact = made(RAMP, WindowCenter="100", WindowWidth="200", VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(
        dicom.decode_dicom(exact)[..., 2], np.clip(RAMP / 200, 0, 1) * 255, atol=0.51
    )
    sigmoid = made(RAMP, WindowCenter="128", WindowWidth="64", VOILUTFunction="SIGMOID")
    np.testing.assert_allclose(
        dicom.decode_dicom(sigmoid)[..., 0], 255 / (1 + np.exp((128 - RAMP) / 16)), atol=0.51
    )
    padded = np.where(RAMP < 64, -2000, RAMP).astype(np.int16)
    stretched = dicom.decode_dicom(made(padded, PixelPaddingValue=-2000))[..., 0]
    low, high = np.percentile(RAMP[RAMP >= 64], (0.5, 99.5))
    np.testing.assert_allclose(
        stretched, np.clip((padded - low) / (high - low), 0, 1) * 255, atol=0.51
    )
    # A window without width is none.
    np.testing.assert_array_equal(
        dicom.decode_dicom(made(eight, WindowCenter="", WindowWidth="0"))[..., 0], eight
    )


def test_values_of_a_frame_come_from_its_functional_group():
    group = pydicom.Dataset()
    frames = np.stack([RAMP, RAMP])
    items = []
    for center in ("64.5", "128.5"):
        voi, group = pydicom.Dataset(), pydicom.Dataset()
        voi.WindowCenter, voi.WindowWidth = center, "129"
        group.FrameVOILUTSequence = [voi]
        items.append(group)
    content = made(frames, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=items)
    assert dicom_file.frames(dicom_file.read(content)) == 2
    for frame, low in enumerate((0, 64)):
        np.testing.assert_allclose(
            dicom.decode_dicom(content, frame)[..., 0],
            np.clip((RAMP - low) / 128, 0, 1) * 255,
            atol=0.51,
        )
    with pytest.raises(DecodeError, match="no frame 2"):
        dicom.decode_dicom(content, 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"no DICOM file at all, but long enough to be read", "not a DICOM file|EOF|holds no"),
        (made(RAMP, Rows=60000, Columns=60000), "60000 x 60000 x 1 is out of range"),
        (made(RAMP, Rows=0), "0 x 16 x 1 is out of range"),
        (made(RAMP, Rows=9000, Columns=9000), "cut short: 512 of 162000000 bytes"),
        (made(RAMP, NumberOfFrames="99999"), "cut short"),
        (made(RAMP, NumberOfFrames="1000000000"), "more than 100000"),
        (made(RAMP, PixelData=None), "holds no image.*CT Image Storage"),
        (made(RAMP, PhotometricInterpretation="PALETTE COLOR"), "Palette"),
        (made(RAMP, BitsAllocated=7), "."),
        (made(RAMP, RescaleSlope="1.25").replace(b"1.25", b"nan "), "nan.* where numbers belong"),
    ],
)
def test_refusals(content, reason):
    with pytest.raises(DecodeError, match=reason):
        dicom.decode_dicom(content)


def test_a_compressed_image_of_another_size_is_not_decoded():
    jpeg = (OWN / "SC_rgb_small_odd_jpeg.dcm").read_bytes()
    dataset = pydicom.dcmread(io.BytesIO(jpeg))
    assert frame_size(pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)) == (3, 3)
    dataset.Rows = 4000
    stream = io.BytesIO()
    dataset.save_as(stream)
    with pytest.raises(DecodeError, match="declares 4000 x 3, the compressed image is 3 x 3"):
        dicom.decode_dicom(stream.getvalue())
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.5")
    dataset.Rows, dataset.PixelData = 3000, encapsulate([b"\0" * 100])
    stream = io.BytesIO()
    dataset.save_as(stream)
    with pytest.raises(DecodeError, match="RLE are too few"):
        dicom.decode_dicom(stream.getvalue())
    assert JPEGBaseline8Bit.is_encapsulated and frame_size(b"") is None


def test_a_deflated_file_cannot_grow_without_limit(monkeypatch):
    whole = (OWN / "image_dfl.dcm").read_bytes()
    assert dicom.decode_dicom(whole).shape == (512, 512, 3)
    start = 144 + int.from_bytes(whole[140:144], "little")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = deflater.compress(bytes(1 << 26)) + deflater.flush()
    monkeypatch.setattr(dicom_file, "MAX_BYTES", 1 << 25)
    with pytest.raises(DecodeError, match="compressed bytes become more than"):
        dicom.decode_dicom(whole[:start] + packed)


def test_invalid_uids_are_taken_as_they_are_and_nothing_is_printed(capfd, caplog):
    content = made(RAMP, PatientID="7")
    name = b"1.2.840.10008.5.1.4.1.1.2"
    content = content.replace(name, b"ID_0a1b2c3d4".ljust(len(name), b"0"))
    assert dicom_file.header(content, "PatientID", "StudyDate") == {
        "PatientID": "7",
        "StudyDate": "",
    }
    before = pydicom.config.settings.reading_validation_mode
    filters = [*warnings.filters]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(dicom.decode_dicom, [content] * 64))
    assert all((image == images[0]).all() for image in images)
    assert pydicom.config.settings.reading_validation_mode == before
    assert warnings.filters == filters and logging.getLogger("pydicom").propagate
    assert capfd.readouterr().err == "" and not caplog.records


@pytest.mark.parametrize("name", ["CT_small.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_RLE.dcm"])
def test_damage_of_any_kind_is_a_decode_error(name):
    whole, rng = (OWN / name).read_bytes(), np.random.default_rng(0)
    read = 0
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(128, len(whole), 3)] = rng.integers(0, 256, 3)
        damaged[rng.integers(128, 2500, 2)] = rng.integers(0, 256, 2)
        content = damaged.tobytes()[: rng.integers(200, len(whole)) if rng.random() < 0.3 else None]
        try:
            assert decode(content).shape[-1] == 3
            read += 1
        except DecodeError as error:
            assert str(error)
    assert read > 10


def test_without_pydicom_the_command_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UsageError, match=r"pip install medinit_jax\[dicom\]"):
        dicom_file.require()
    with pytest.raises(DecodeError, match=r"pip install medinit_jax\[dicom\]"):
        dicom.decode_dicom(b"\0" * 200)


def test_a_folder_of_dicom_files(tmp_path, caplog):
    frames = np.stack([RAMP, 255 - RAMP])
    (tmp_path / "a.dcm").write_bytes(made(RAMP, PatientID="one"))
    (tmp_path / "b.dcm").write_bytes(made(RAMP, PatientID="one"))
    (tmp_path / "00017").write_bytes(made(frames, PatientID="two", NumberOfFrames=2))
    for check in ("decode", "header"):
        source = FolderSource(tmp_path, size=16, check=check)
        assert source.files == ["00017", "a.dcm", "b.dcm"]
        assert source.patients == ["two", "one", "one"]
        np.testing.assert_array_equal(source[0]["image"], source[1]["image"])
        assert source[2]["patient"] == "one" and source[0]["image"].max() == 255
        assert source.describe()["first_frames"] == ["00017: the first of 2 frames is taken"]
    assert caplog.text.count("1 DICOM files have several frames, among them 00017") == 2
    (tmp_path / "00017").unlink()
    source = FolderSource(tmp_path, size=16)
    assert source.patients == ["a", "b"] and "same PatientID" in caplog.text
    (tmp_path / "c.dcm").write_bytes(made(RAMP)[:600])
    with pytest.raises(UsageError, match=r"1 of 3 .*c\.dcm .*cut short"):
        FolderSource(tmp_path, size=16)
