"""Host-side data: files in, registered dataclasses of arrays out."""
