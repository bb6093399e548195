"""Write a tiny random model for dry runs of the sensitivity runner (`preset=dry_run`)."""

import argparse
import importlib.util
import sys
from pathlib import Path


def main() -> int:
    from fewbits.core.errors import FewbitsError
    from fewbits.quantizers.torch.tiny import ARCHITECTURES, write_tiny_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("tmp/models/tiny_qwen3_vl"), help="default: %(default)s")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen3_vl")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        print(write_tiny_model(arguments.folder, arguments.architecture, arguments.seed))
    except FewbitsError as error:
        print(f"make_tiny_model: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    if importlib.util.find_spec("fewbits") is None:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from _door import open_door

        raise SystemExit(open_door())
    raise SystemExit(main())
