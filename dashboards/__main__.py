"""``python -m dashboards RUN_OR_FOLDER``, which is what ``xvision dashboard`` starts."""

from dashboards.launch import main

raise SystemExit(main())
