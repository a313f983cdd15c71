"""The commands, one file each: ``main(argv)`` is callable from Python, ``cli_main()`` is the console script."""
