"""A folder of image files as a source."""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medinit_jax.core.errors import UsageError
from medinit_jax.data import dicom, dicom_file, nifti
from medinit_jax.data.decode import DecodeError, Fit, decode, fit_square, medical_kind, opened

# Files that nobody takes for images: reported, but no reason to stop.
OTHER_SUFFIXES = frozenset(
    {".csv", ".tsv", ".txt", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf"}
    | {".xls", ".xlsx", ".doc", ".docx", ".py", ".ipynb", ".log", ".db", ".ini", ".sh", ".mat"}
    | {".zip", ".tar", ".gz", ".tgz", ".7z", ".npz", ".npy", ".h5", ".pt", ".pth", ".ds_store"}
)
MAX_UNREADABLE = 0.001
_EYE = re.compile(r"^(?P<patient>.+?)[_\-. ](?P<eye>left|right|os|od)$", re.IGNORECASE)
_EYES = {"left": -1, "os": -1, "right": 1, "od": 1}
# Up to this size a file's checksum covers all its bytes, above it both ends and the length.
_WHOLE_FILE = 1 << 20


class _Found(NamedTuple):
    """What a look at a file gives.

    Attributes:
        reason: Why it cannot be read; None if it can.
        parts: Numbers of its images; None is the only one.
        patient: The header's patient, "" if unknown.
        frames: Frames of a DICOM file, of which the first is the image.
    """

    reason: str | None
    parts: Sequence[int | None] = (None,)
    patient: str = ""
    frames: int = 1


class FolderSource:
    """All images below a folder, sorted by path.

    Of a DICOM file with several frames the first is taken; of a NIfTI volume (.nii, .nii.gz) every
    axial slice is an image. The patient is that of a DICOM file's header, otherwise the file's name
    without _left, _right, _OS or _OD.

    Hidden files and files that are clearly no images are ignored and counted. What should be an
    image and cannot be read is left out, counted and listed; more than 0.1 % of it is an error.
    Links that lead out of the folder are not followed, and listed.

    Attributes:
        path: The folder.
        files: The file of every image, relative to the folder.
        parts: Which part of its file every image is: a slice of a volume, otherwise None.
        patients: The patient of every image.
        unreadable: (file, reason) of what was left out.
        first_frames: DICOM files of which more frames are left out, as sentences.
        ignored: Files that were not taken for images.
        outside: Links that lead out of the folder, or to nothing.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        fit: Fit = "crop",
        labels: Literal["none", "folder"] = "none",
        check: Literal["decode", "header"] = "decode",
        threads: int = 4,
    ):
        """Lists and checks the folder.

        Args:
            path: Folder, searched with all its sub-folders.
            size: Side of the images this source returns, in pixels.
            fit: How an image becomes square, see `decode.fit_square`.
            labels: "folder" makes the first level of sub-folders, sorted, the class.
            check: "decode" reads every image once, "header" only its first bytes: fast on huge
                sets, and an image that turns out to be cut short is then replaced by the next one.
            threads: Threads that check.

        Raises:
            UsageError: The folder is missing or holds no image, or too many files are unreadable.
        """
        self.path, self.size, self.check = Path(path), size, check
        self.fit: Fit = fit
        if not self.path.is_dir():
            kind = "is a file, not a folder" if self.path.is_file() else "does not exist"
            raise UsageError(f"The image folder {self.path} {kind}; set data.path to a folder.")
        candidates, self.ignored, self.outside = list_files(self.path)
        for link in self.outside:
            logging.warning("%s leads out of %s and is not followed.", link, self.path)
        if not candidates:
            others = f"{len(self.ignored)} other files"
            if self.outside:
                others += f", {len(self.outside)} links out of it that are not followed"
            raise UsageError(
                f"The image folder {self.path} holds no image ({others}); "
                f"set data.path to a folder of png, jpg, tif, bmp, ppm, gif, dcm or nii files."
            )
        self._check(candidates, threads)
        self.classes = _classes(self.path, self.files) if labels == "folder" else ()

    def _check(self, candidates: list[str], threads: int) -> None:
        """Sets `files` and `unreadable`."""
        with ThreadPoolExecutor(threads) as pool:
            found = dict(zip(candidates, pool.map(self._look, candidates), strict=True))
        readable = {file: one for file, one in found.items() if one.reason is None}
        self.files = [file for file, one in readable.items() for _ in one.parts]
        self.parts = [part for one in readable.values() for part in one.parts]
        named = _patients({file: one.patient for file, one in readable.items()})
        self.patients = [named[file] for file in self.files]
        self.unreadable = [(file, one.reason) for file, one in found.items() if one.reason]
        _refuse_many(self.path, self.unreadable, len(candidates))
        for file, reason in self.unreadable:
            logging.warning("%s is left out: %s", self.path / file, reason)
        self.first_frames = [
            f"{file}: the first of {one.frames} frames is taken"
            for file, one in readable.items()
            if one.frames > 1
        ]
        if self.first_frames:
            logging.warning(
                "%d DICOM files have several frames, among them %s",
                len(self.first_frames),
                "; ".join(self.first_frames[:3]),
            )

    def _look(self, file: str) -> _Found:
        place = self.path / file
        try:
            kind = medical_kind(place)
            if kind == "nifti":
                count = nifti.slices(place)
                if self.check == "decode":
                    nifti.read_slice(place)
                return _Found(None, range(count))
            if kind == "dicom":
                dataset = dicom_file.read(place, pixels=self.check == "decode")
                if self.check == "decode":
                    dicom.displayed(dataset)
                elif not dicom_file.text(dataset, "Rows"):
                    raise DecodeError("it holds no image")
                patient = dicom_file.text(dataset, "PatientID")
                return _Found(None, patient=patient, frames=dicom_file.frames(dataset))
            if self.check == "decode":
                decode(place, at_least=self.size)
            else:
                with opened(place):
                    pass
        except Exception as error:
            return _Found(_diagnose(place) or str(error))
        return _Found(None)

    def __len__(self) -> int:
        """Returns the number of readable images."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns image uint8 (size, size, 3), eye, patient, and label if there are classes."""
        index = int(index)
        file = self.files[index]
        try:
            image = decode(self.path / file, self.size, self.parts[index])
        except DecodeError as error:
            self.unreadable.append((file, str(error)))
            logging.warning("%s cannot be read (%s); the next image takes its place.", file, error)
            _refuse_many(self.path, self.unreadable, len(self.files))
            return self[(index + 1) % len(self.files)]
        example = {"image": fit_square(image, self.size, self.fit), **self._facts(file)}
        example["patient"] = self.patients[index]
        return example

    def _facts(self, file: str) -> dict[str, Any]:
        """Returns what is known of an image beside its pixels."""
        if not self.classes:
            return eye_of(file)
        return {**eye_of(file), "label": self.classes.index(Path(file).parts[0])}

    def describe(self) -> dict[str, Any]:
        """Returns what to record of the images: source, count, checksum and what was left out."""
        return {
            "source": f"folder:{self.path}",
            "count": len(self),
            "sha256": self.checksum(),
            "ignored": len(self.ignored),
            "links_not_followed": self.outside,
            "first_frames": self.first_frames,
            "unreadable": [f"{file}: {reason}" for file, reason in self.unreadable],
        }

    def checksum(self) -> str:
        """Returns a SHA-256 over the names and contents (above 1 MiB: the ends) of the images."""
        digest = hashlib.sha256()
        for file in dict.fromkeys(self.files):
            place = self.path / file
            length = place.stat().st_size
            # Names may hold bytes that are no UTF-8.
            digest.update(os.fsencode(file) + f"\0{length}\0".encode())
            with place.open("rb") as stream:
                digest.update(stream.read(_WHOLE_FILE // 2))
                if length > _WHOLE_FILE:
                    stream.seek(-_WHOLE_FILE // 2, 2)
                digest.update(stream.read())
        return digest.hexdigest()


def list_files(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Returns candidate images, ignored files and links out of a folder, relative and sorted."""
    candidates, ignored, outside = [], [], []
    root = os.path.realpath(folder)
    for place in sorted(
        Path(above, name)
        for above, folders, files in os.walk(folder, onerror=_refuse_folder)
        for name in (*folders, *files)
    ):
        relative = place.relative_to(folder)
        if place.is_symlink():
            target = os.path.realpath(place)
            if os.path.commonpath((root, target)) != root or not os.path.exists(target):
                outside.append(relative.as_posix())
                continue
        if not place.is_file():
            continue
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in relative.parts)
        clutter = place.suffix.lower() in OTHER_SUFFIXES or place.name in ("Thumbs.db", "DICOMDIR")
        clutter = clutter and medical_kind(place) != "nifti"
        (ignored if hidden or clutter else candidates).append(relative.as_posix())
    return candidates, ignored, outside


def _refuse_folder(error: OSError) -> None:
    raise UsageError(
        f"The folder {error.filename} cannot be read: {error.strerror}; change its permissions or "
        f"move it elsewhere."
    )


def _diagnose(place: Path) -> str | None:
    """Names the usual reasons for files that are no images."""
    try:
        length = place.stat().st_size
        with place.open("rb") as stream:
            start = stream.read(200)
    except OSError as error:
        return error.strerror
    if length == 0:
        return "empty file"
    if start.startswith(b"version https://git-lfs"):
        return "git-lfs pointer, not the data"
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "web page, not the data"
    return None


def _refuse_many(folder: Path, unreadable: Sequence[tuple[str, str]], total: int) -> None:
    if len(unreadable) <= MAX_UNREADABLE * total:
        return
    first = "; ".join(f"{file} ({reason})" for file, reason in unreadable[:3])
    more = f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
    raise UsageError(
        f"{len(unreadable)} of {total} files in {folder} cannot be read as images, more than "
        f"0.1 %: {first}{more}; repair or remove them, or point data.path elsewhere."
    )


def _classes(folder: Path, files: list[str]) -> tuple[str, ...]:
    loose = [file for file in files if "/" not in file]
    if loose:
        raise UsageError(
            f"data.labels=folder needs one sub-folder per class in {folder}, but {loose[0]} lies "
            f"beside them; move it or set data.labels=none."
        )
    return tuple(sorted({Path(file).parts[0] for file in files}))


def _patients(of_header: dict[str, str]) -> dict[str, str]:
    """Returns the patient of every file: the header's, or that of the file's name."""
    known = known_patients(of_header)
    return {
        file: patient if patient in known else eye_of(file)["patient"]
        for file, patient in of_header.items()
    }


def known_patients(of_header: dict[str, str]) -> set[str]:
    """Returns the patients of {file: its header's PatientID}; none where all files have one."""
    known = {patient for patient in of_header.values() if patient}
    if len(known) == 1 and list(of_header.values()).count(*known) > 1:
        logging.warning(
            "All DICOM files have the same PatientID, as anonymized ones do: each counts as a "
            "patient of its own."
        )
        known = set()
    return known


def eye_of(file: str) -> dict[str, Any]:
    """Reads patient and eye from names such as 123_left.jpeg; otherwise the file is the patient."""
    stem = Path(file).with_suffix("").as_posix()
    match = _EYE.match(stem)
    if match is None:
        return {"eye": 0, "patient": stem}
    return {"eye": _EYES[match["eye"].lower()], "patient": match["patient"]}
