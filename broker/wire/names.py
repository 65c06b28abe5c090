"""Names as they travel: the project's own grammar (`attestation.names`), under the words that the wire has for it."""

from typing import Final

from attestation.names import LABEL as LABEL
from attestation.names import MAX_RESOURCE as MAX_RESOURCE
from attestation.names import MAX_SUBJECT as MAX_SUBJECT
from attestation.names import RESOURCE as RESOURCE
from attestation.names import SEGMENT
from attestation.names import SUBJECT as SUBJECT
from attestation.names import is_resource as is_resource
from attestation.names import tenant_of as tenant_of

TENANT: Final = SEGMENT
