"""`python -m fewbits` is `fewbits`."""

from fewbits.cli.main import main

raise SystemExit(main())
