"""What a hospital keeps of an audit, so that it can tell later, without labels, when images have become others."""
