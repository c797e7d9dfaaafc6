"""
The evaluation bundle of CORE (DCLM): 22 tasks for base models.

$ python data/core/prepare.py

Downloads eval_bundle.zip into raw/ beside this file and unpacks it to eval_bundle/: core.yaml,
eval_meta_data.csv and eval_data/. Another address: --url=..., another bundle: your own file
raw/eval_bundle.zip, for which no network is needed.
"""

import shutil
import stat
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
import disk
from configurator import configure
from data.download import download

FOLDER = Path(__file__).resolve().parent
BUNDLE = FOLDER / 'eval_bundle'
NEEDED = ('core.yaml', 'eval_meta_data.csv')

url = 'https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip'  # the bundle
max_gigabytes = 4.0  # unpacked; a larger bundle is refused
tries = 5  # attempts at the download


def find_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """
    {path below the bundle's folder: member} of the files to unpack.

    ValueError if the archive holds a path outside its folder, a link or a device, two files of one
    name, or lacks a file that CORE needs.
    """
    # 1) Nothing in it may reach outside
    members = {}
    lowered = set()
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if path.is_absolute() or '..' in path.parts or set(member.filename) & set(':\\\0'):
            raise ValueError(f'{member.filename!r} is a path outside the folder')
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f'{member.filename!r} is a link or a device')
        if member.flag_bits & 1:
            raise ValueError(f'{member.filename!r} is encrypted')
        if member.is_dir():
            continue
        if str(path).lower() in lowered:  # Windows and macOS do not tell capitals apart
            raise ValueError(f'{member.filename!r} occurs twice')
        lowered.add(str(path).lower())
        members[str(path)] = member
    total = sum(member.file_size for member in members.values())
    if total > max_gigabytes * 1e9:
        raise ValueError(f'{total / 1e9:.1f} GB unpacked, expected at most {max_gigabytes}')
    # 2) The folder of core.yaml, at any depth
    tops = [PurePosixPath(name).parent for name in members if name.split('/')[-1] == NEEDED[0]]
    top = min(tops, key=lambda path: len(path.parts), default=PurePosixPath())
    found = {}
    for name, member in members.items():
        if PurePosixPath(name).is_relative_to(top):
            found[str(PurePosixPath(name).relative_to(top))] = member
    missing = [name for name in NEEDED if name not in found]
    if not any(name.startswith('eval_data/') for name in found):
        missing.append('eval_data/')
    if missing:
        raise ValueError(f'it lacks {", ".join(missing)}')
    return found


def unpack(path: Path) -> int:
    """Unpack to BUNDLE under a temporary name first. Returns the number of files."""
    part = BUNDLE.with_name(BUNDLE.name + '.part')
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    try:
        with zipfile.ZipFile(path) as archive, disk.writing(part):
            members = find_members(archive)
            for name, member in members.items():
                target = part / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, 'wb') as file:
                    shutil.copyfileobj(source, file)
                disk.sync(target)
            shutil.rmtree(BUNDLE, ignore_errors=True)
            part.rename(BUNDLE)
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise SystemExit(
            f'{path}: not a bundle of CORE ({error}): delete it and run again, or check --url'
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return len(members)


def main() -> None:
    path = download(url, FOLDER / 'raw' / 'eval_bundle.zip', tries=tries)
    print(f'{BUNDLE}: {unpack(path):,} files')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
