"""One dataset as a page that a person can browse."""

from pipelines.show.build import ShowSettings, build_page, write_page
from pipelines.show.serve import serve_page

__all__ = ["ShowSettings", "build_page", "serve_page", "write_page"]
