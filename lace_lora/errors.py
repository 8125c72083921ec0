"""The few exceptions that users meet. Each message says what is wrong, where, and what to do next.

LaceError
├── SettingsError     a setting is unknown, of the wrong kind or out of its bounds
├── PicturesError     a folder, a picture or an annotation cannot be used
├── ModelError        a base model is missing or is not what its folder promises
├── AdapterError      a LoRA file is missing, damaged or made for another model
├── RunError          a run folder cannot be written, or belongs to other settings
├── MachineError      memory, disk or Drive gave out
├── BackendError      a server on which work is done (ComfyUI, Replicate) is away, refuses or failed
├── TextError         a pair of texts, a document or a grammar of a text adapter cannot be used
└── NotebookError     a notebook or a combination of a batch failed, or was asked for a parameter it does not have

Doors (command line, notebooks) print `str(error)` and fail; nothing below a door prints an error and goes on.
"""


class LaceError(Exception):
    """Base of all errors that a user can do something about."""


class SettingsError(LaceError):
    """A setting is unknown, of the wrong kind or out of its bounds."""


class PicturesError(LaceError):
    """A folder, a picture or an annotation cannot be used."""


class ModelError(LaceError):
    """A base model is missing, or its folder does not hold what it promises."""


class AdapterError(LaceError):
    """A LoRA file is missing, damaged, or was made for another model."""


class RunError(LaceError):
    """A run folder cannot be written, or belongs to other settings."""


class MachineError(LaceError):
    """Memory, disk or Drive gave out."""


class BackendError(LaceError):
    """A server on which work is done elsewhere cannot be reached, refuses, or failed at it."""


class TextError(LaceError):
    """A pair of texts, a document or a grammar of a text adapter cannot be used."""


class NotebookError(LaceError):
    """A notebook or a combination of a batch failed, or was asked for a parameter it does not have."""
