"""The commands of ``dropout-grpo``: one file each, with the name of the command. A new file is a new command.

A file has

- ``HELP``: what the command does, its line in ``dropout-grpo --help``;
- ``add_options(parser)``, which adds its options;
- ``run(options)``, which runs it with the parsed options. ``options.given`` has those that the user has given.

A command that reads a recipe also has ``UNUSED``, the sections and options of a recipe that it ignores. It runs in all
processes of torchrun, the others in the first one. ``DEFAULT_RECIPE`` is its recipe if ``--recipe`` is not given.

All files are imported for ``--help``. What imports torch is therefore imported inside of functions.
"""
