"""Reading xml of a stranger's: no entities, no documents within documents, nothing fetched."""

from __future__ import annotations

import os
from xml.etree import ElementTree

from vision_stack.data.checks.issues import DataError, data_error

MAX_BYTES = 32_000_000
_REMEDY = "export it again"


def parse_xml(path: str) -> ElementTree.Element:
    """The root element.

    Raises:
        DataError: unreadable, not xml, or with a document type, in which entities are declared that refer to other
            files or unfold to any size.
    """
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise data_error(path, "file", f"more than {MAX_BYTES:,} bytes", _REMEDY)
        with open(path, "rb") as file:
            content = file.read()
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content or b"\0" in content:  # zeros: another encoding of these
            raise data_error(path, "file", "has a document type or entities, which are not read", "remove them")
        return ElementTree.fromstring(content)
    except DataError:
        raise
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise data_error(path, "file", f"not valid xml ({str(error)[:80]})", _REMEDY) from None
    except OSError as error:
        raise data_error(path, "file", f"cannot be read ({error.strerror})", "check its permissions") from None
