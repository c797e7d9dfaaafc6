"""
Text that can be written as UTF-8. Call valid_text where text enters a program: JSON, a setting, an
argument.

JSON can spell half an emoji ("\\ud83d"), and bytes of an argument that are not UTF-8 become
characters that no file can hold. Otherwise such a text fails hours later, when it is written.

    >>> valid_text('half \\ud83d, whole \\ud83d\\ude00')
    'half \ufffd, whole 😀'
"""


def valid_text(value):
    """
    A str that UTF-8 can hold: surrogate pairs are joined, a lone surrogate becomes U+FFFD.

    In parsed JSON (dicts and lists of any depth) this is done to all texts, keys too. Other values
    are returned unchanged.
    """
    if isinstance(value, str):
        try:
            value.encode('utf-8')
            return value
        except UnicodeEncodeError:
            return value.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')
    if isinstance(value, list):
        return [valid_text(item) for item in value]
    if isinstance(value, dict):
        return {valid_text(key): valid_text(item) for key, item in value.items()}
    return value
