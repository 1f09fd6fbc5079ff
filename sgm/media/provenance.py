"""What a file says of its origin, for everybody to read: XMP that names the IPTC's source type."""

from __future__ import annotations

import uuid

# Of media that a trained model made, https://cv.iptc.org/newscodes/digitalsourcetype/
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="sgm-video"
 Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>
</rdf:RDF></x:xmpmeta><?xpacket end="w"?>""".encode()
_XMP_OF_MP4 = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes  # by ISO 16684-1, part 3 of Adobe's XMP
# A box of an MP4, to stand at its end: players pass over it.
SOURCE_BOX = (24 + len(_XMP)).to_bytes(4, "big") + b"uuid" + _XMP_OF_MP4 + _XMP
