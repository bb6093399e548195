"""Score how sensitive each layer of a language model is to quantization (Hydra overrides: GROUP=OPTION, KEY=VALUE, -m)."""

import importlib.util
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent

# the guard: process pools import this file again in each worker
if __name__ == "__main__":
    if importlib.util.find_spec("fewbits") is None:
        sys.path.insert(0, str(SCRIPTS))
        from _door import open_door

        # starts this script again with the project's environment, or says that there is none
        raise SystemExit(open_door())
    from fewbits.cli.hydra_app import main

    raise SystemExit(main(SCRIPTS.parent / "conf"))
