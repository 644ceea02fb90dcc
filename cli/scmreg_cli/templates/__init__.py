"""One small plugin of every kind: what ``scm new plugin`` writes, under another name.

Every module beside this one is a working plugin, named after its kind, and is checked like all other code. In a copy
the words ``Example`` and ``example`` give way to the new names. The lines of a module's docstring
that begin with ``scm`` say how to use it.
"""
