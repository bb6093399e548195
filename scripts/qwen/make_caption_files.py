"""Write the caption files of the sensitivity runner, one per size, from captions of training images."""

import argparse
import importlib.util
import sys
from pathlib import Path


def main() -> int:
    from fewbits.api.captions import SEED, SIZES, write_caption_files
    from fewbits.core.errors import FewbitsError

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="captions_train2017.json of COCO, or a text file with one caption per line")
    parser.add_argument("--out-dir", type=Path, default=Path("datasets/vlm-quantize-calib"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=SEED, help="of the order of a JSON source's captions (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        counts = write_caption_files(arguments.source, arguments.out_dir, seed=arguments.seed)
    except FewbitsError as error:
        print(f"make_caption_files: {error}", file=sys.stderr)
        return error.exit_code
    for size, count in counts.items():
        note = "" if count == SIZES[size] else f" (the source has no more; the size asks for up to {SIZES[size]})"
        print(f"{arguments.out_dir}/coco2017_captions_{size}.txt: {count} captions{note}")
    return 0


if __name__ == "__main__":
    if importlib.util.find_spec("fewbits") is None:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from _door import open_door

        raise SystemExit(open_door())
    raise SystemExit(main())
