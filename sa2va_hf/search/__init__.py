"""Visual search: a small target in a large picture, found crop by crop, as V* does (arXiv 2312.14135)."""

from sa2va_hf.search.algorithm import search
from sa2va_hf.search.result import Found, SearchResult, Visit
from sa2va_hf.search.settings import Located, SearchModel, SearchSettings

__all__ = ["Found", "Located", "SearchModel", "SearchResult", "SearchSettings", "Visit", "search"]
