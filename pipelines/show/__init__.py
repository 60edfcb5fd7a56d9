"""One dataset as a page that a person can browse."""

from pipelines.show.build import ShowSettings, build_page, write_page

__all__ = ["ShowSettings", "build_page", "write_page"]
