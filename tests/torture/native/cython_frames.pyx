# cython: language_level=3
"""Frames compiled by Cython between a portal and await_."""


cdef class Holder:
    cdef object function

    def __init__(self, function):
        self.function = function

    def __getitem__(self, index):
        return self.function()

    def __dealloc__(self):
        self.function = None


cdef int through_c(object function, int depth) except? -1:
    cdef long pattern[64]
    cdef int i
    for i in range(64):
        pattern[i] = depth
    if depth == 0:
        function()
    else:
        through_c(function, depth - 1)
    for i in range(64):
        if pattern[i] != depth:
            raise SystemError("a C array on the stack was overwritten")
    return 0


def plain(function):
    return through_c(function, 3)


def handling(function):
    """The call is made while an exception is being handled."""
    try:
        raise LookupError("in Cython")
    except LookupError:
        function()


def indexed(function):
    return Holder(function)[1]


def generator(function, int times):
    for i in range(times):
        yield function()


def finishing(function):
    try:
        pass
    finally:
        function()
