from fluvial.cli import main

raise SystemExit(main())
