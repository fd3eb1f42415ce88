"""Files and directories with an eye on who else may change them: where a path leads, and how one is replaced."""
