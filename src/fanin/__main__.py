"""`python -m fanin` is the `fanin` command."""

from fanin.app import main

raise SystemExit(main())
