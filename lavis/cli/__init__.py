"""The `lavis` command. Its modules import torch only once a command runs, so `lavis --help` is quick."""
