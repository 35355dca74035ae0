"""A model that ran elsewhere: what `parity.dump_model` writes to a folder, and what a comparison reads from it."""

from parity.models.dump.files import Dump as Dump
