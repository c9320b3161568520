// SPDX-License-Identifier: Apache-2.0
// What csrc/ops.cpp needs of Python to be a module: no Python is there.
#pragma once

struct PyObject;

struct PyModuleDef {
  int head;
  const char *name, *doc;
  long size;
  const void *methods, *slots, *traverse, *clear, *free;
};

#define PyModuleDef_HEAD_INIT 0
#define PyMODINIT_FUNC extern "C" PyObject*

inline PyObject* PyModule_Create(PyModuleDef*) { return nullptr; }
