"""What must not end in a file: passwords and tokens in addresses."""

import re

# The name before @, with or without a password.
_USER = re.compile(r"(?<=://)[^\s/@\"'\\]+(?=@)")
# Values of a signed address; names such as X-Amz-Signature and access_token are among them.
_SIGNED = re.compile(
    r"([?&][\w-]*(?:token|secret|key|signature|password|credential|sig)[\w-]*=)[^&\s\"'\\]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Returns a text in which `***` stands for what gives access to an address.

    Args:
        text: Of any kind, JSON also.
    """
    return _SIGNED.sub(r"\1***", _USER.sub("***", text))
