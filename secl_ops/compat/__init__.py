# SPDX-License-Identifier: Apache-2.0
"""The losses of other projects under the names that call them: one import line changes, the value does not.

Each module is imported when it is asked for, as in `import secl_ops.compat.monai`; none imports the project that it is
named after. What a loss of theirs takes and this library cannot compute is refused by name.
"""
