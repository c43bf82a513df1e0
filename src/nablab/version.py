"""The version of nablab."""

VERSION = "0.1.0"
