"""The version of shardsim."""

VERSION = "0.1.0"
