// SPDX-License-Identifier: Apache-2.0
// The part of torch's stable C interface that the extension calls, so that it links where there is no torch.
#include "torch.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/stableivalue_conversions.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>
#include <stdexcept>

namespace boxes = torch::stable::detail;
using secl::aarch64::element_size;
using secl::aarch64::make;
using torch::headeronly::DeviceType;
using torch::headeronly::Layout;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

struct StableListOpaque {
  std::vector<StableIValue> items;
};

struct StringOpaque {
  std::string text;
};

int64_t AtenTensorOpaque::numel() const {
  return std::accumulate(size.begin(), size.end(), int64_t{1}, std::multiplies<>());
}

bool AtenTensorOpaque::is_contiguous() const {
  int64_t expected = 1;
  for (size_t d = size.size(); d-- > 0; expected *= size[d]) {
    if (size[d] != 1 && stride[d] != expected && numel() > 0) return false;
  }
  return true;
}

namespace secl::aarch64 {
namespace {

Numbers dense_stride(const Numbers& size) {
  Numbers stride(size.size(), 1);
  for (size_t d = size.size(); d-- > 1;) stride[d - 1] = stride[d] * std::max<int64_t>(size[d], 1);
  return stride;
}

void fill(const AtenTensorOpaque& tensor, double value) {
  if (value != 0 && tensor.type != ScalarType::Float) throw std::runtime_error("only floats are filled");
  if (value == 0) return std::fill(tensor.storage->begin(), tensor.storage->end(), char{0});
  float* data = reinterpret_cast<float*>(tensor.storage->data());
  std::fill(data, data + tensor.numel(), static_cast<float>(value));
}

// The operations of torch itself that the extension calls by name.
StableIValue aten(const std::string& name, StableIValue* stack) {
  if (name == "aten::empty") {
    const auto size = boxes::to<Numbers>(stack[0]);
    return boxes::from(make(boxes::to<std::optional<ScalarType>>(stack[1]).value(), size));
  }
  const auto self = boxes::to<torch::stable::Tensor>(stack[0]);
  const AtenTensorOpaque& tensor = *self.get();
  if (name == "aten::empty_like") return boxes::from(make(tensor.type, tensor.size));
  if (name == "aten::zero_") {
    fill(tensor, 0);
    return boxes::from(self);
  }
  if (name == "aten::clone") {
    AtenTensorHandle copy = new AtenTensorOpaque(tensor);
    copy->storage = std::make_shared<std::vector<char>>(*tensor.storage);
    return boxes::from(copy);
  }
  throw std::runtime_error("the stand-in for torch has no " + name);
}

}  // namespace

size_t element_size(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Bool:
      return 1;
    case ScalarType::Short:
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Int:
    case ScalarType::Float:
      return 4;
    case ScalarType::Long:
    case ScalarType::Double:
      return 8;
    default:
      throw std::runtime_error("the stand-in for torch has no tensors of this dtype");
  }
}

AtenTensorHandle make(ScalarType type, const Numbers& size) {
  AtenTensorHandle made = new AtenTensorOpaque{type, size, dense_stride(size), nullptr};
  const size_t bytes = static_cast<size_t>(made->numel()) * element_size(type);
  made->storage = std::make_shared<std::vector<char>>(bytes, char(-1));
  return made;
}

std::map<std::string, Operation>& operations() {
  static std::map<std::string, Operation> registered;
  return registered;
}

}  // namespace secl::aarch64

extern "C" {

// A number that stands for a choice, of which the extension asks which it is.
#define SECL_CHOICE(name, value) \
  int32_t name() { return static_cast<int32_t>(value); }
SECL_CHOICE(aoti_torch_dtype_uint8, ScalarType::Byte)
SECL_CHOICE(aoti_torch_dtype_int8, ScalarType::Char)
SECL_CHOICE(aoti_torch_dtype_int16, ScalarType::Short)
SECL_CHOICE(aoti_torch_dtype_int32, ScalarType::Int)
SECL_CHOICE(aoti_torch_dtype_int64, ScalarType::Long)
SECL_CHOICE(aoti_torch_dtype_float16, ScalarType::Half)
SECL_CHOICE(aoti_torch_dtype_float32, ScalarType::Float)
SECL_CHOICE(aoti_torch_dtype_float64, ScalarType::Double)
SECL_CHOICE(aoti_torch_dtype_complex32, ScalarType::ComplexHalf)
SECL_CHOICE(aoti_torch_dtype_complex64, ScalarType::ComplexFloat)
SECL_CHOICE(aoti_torch_dtype_complex128, ScalarType::ComplexDouble)
SECL_CHOICE(aoti_torch_dtype_bool, ScalarType::Bool)
SECL_CHOICE(aoti_torch_dtype_bfloat16, ScalarType::BFloat16)
SECL_CHOICE(aoti_torch_dtype_float8_e5m2, ScalarType::Float8_e5m2)
SECL_CHOICE(aoti_torch_dtype_float8_e4m3fn, ScalarType::Float8_e4m3fn)
SECL_CHOICE(aoti_torch_dtype_float8_e5m2fnuz, ScalarType::Float8_e5m2fnuz)
SECL_CHOICE(aoti_torch_dtype_float8_e4m3fnuz, ScalarType::Float8_e4m3fnuz)
SECL_CHOICE(aoti_torch_dtype_uint16, ScalarType::UInt16)
SECL_CHOICE(aoti_torch_dtype_uint32, ScalarType::UInt32)
SECL_CHOICE(aoti_torch_dtype_uint64, ScalarType::UInt64)
SECL_CHOICE(torch_dtype_float8_e8m0fnu, ScalarType::Float8_e8m0fnu)
SECL_CHOICE(torch_dtype_float4_e2m1fn_x2, ScalarType::Float4_e2m1fn_x2)
SECL_CHOICE(aoti_torch_device_type_cpu, DeviceType::CPU)
SECL_CHOICE(aoti_torch_device_type_cuda, DeviceType::CUDA)
SECL_CHOICE(aoti_torch_device_type_meta, DeviceType::Meta)
SECL_CHOICE(aoti_torch_device_type_xpu, DeviceType::XPU)
SECL_CHOICE(aoti_torch_device_type_mps, DeviceType::MPS)
SECL_CHOICE(aoti_torch_device_type_privateuse1, DeviceType::PrivateUse1)
SECL_CHOICE(aoti_torch_layout_strided, Layout::Strided)
SECL_CHOICE(aoti_torch_layout_sparse_coo, Layout::Sparse)
SECL_CHOICE(aoti_torch_layout_sparse_csr, Layout::SparseCsr)
SECL_CHOICE(aoti_torch_layout_sparse_csc, Layout::SparseCsc)
SECL_CHOICE(aoti_torch_layout_sparse_bsr, Layout::SparseBsr)
SECL_CHOICE(aoti_torch_layout_sparse_bsc, Layout::SparseBsc)
SECL_CHOICE(aoti_torch_layout__mkldnn, Layout::Mkldnn)
SECL_CHOICE(aoti_torch_layout_jagged, Layout::Jagged)
SECL_CHOICE(aoti_torch_memory_format_contiguous_format, MemoryFormat::Contiguous)
SECL_CHOICE(aoti_torch_memory_format_preserve_format, MemoryFormat::Preserve)
SECL_CHOICE(aoti_torch_memory_format_channels_last, MemoryFormat::ChannelsLast)
SECL_CHOICE(aoti_torch_memory_format_channels_last_3d, MemoryFormat::ChannelsLast3d)

uint64_t aoti_torch_abi_version() { return TORCH_ABI_VERSION; }

AOTITorchError aoti_torch_library_init_def(const char*, const char*, uint32_t, TorchLibraryHandle*) {
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t,
                                            TorchLibraryHandle*) {
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char*) { return TORCH_SUCCESS; }
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) { return TORCH_SUCCESS; }
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, secl::aarch64::Operation operation,
                                  uint64_t) {
  secl::aarch64::operations()[name] = operation;
  return TORCH_SUCCESS;
}

AOTITorchError torch_call_dispatcher(const char* name, const char*, StableIValue* stack, uint64_t) {
  stack[0] = secl::aarch64::aten(name, stack);
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_aten_fill__Scalar(AtenTensorHandle self, double value) {
  secl::aarch64::fill(*self, value);
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_aten_full(const int64_t* size, int64_t dimensions, double value, int32_t* type,
                                    int32_t*, int32_t*, int32_t, int32_t*, AtenTensorHandle* made) {
  *made = make(static_cast<ScalarType>(*type), Numbers(size, size + dimensions));
  secl::aarch64::fill(**made, value);
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle from, AtenTensorHandle* to) {
  *to = new AtenTensorOpaque(*from);
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  delete tensor;
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) {
  *type = aoti_torch_device_type_cpu();
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) {
  *index = -1;
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* type) {
  *type = static_cast<int32_t>(tensor->type);
  return TORCH_SUCCESS;
}
size_t aoti_torch_dtype_element_size(int32_t type) { return element_size(static_cast<ScalarType>(type)); }
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* dimensions) {
  *dimensions = static_cast<int64_t>(tensor->size.size());
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_numel(AtenTensorHandle tensor, int64_t* numel) {
  *numel = tensor->numel();
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** sizes) {
  *sizes = tensor->size.data();
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_size(AtenTensorHandle tensor, int64_t d, int64_t* size) {
  *size = tensor->size.at(static_cast<size_t>(d));
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** strides) {
  *strides = tensor->stride.data();
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_stride(AtenTensorHandle tensor, int64_t d, int64_t* stride) {
  *stride = tensor->stride.at(static_cast<size_t>(d));
  return TORCH_SUCCESS;
}
AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle tensor, bool* found) {
  *found = tensor->is_contiguous();
  return TORCH_SUCCESS;
}
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data) {
  *data = tensor->storage->data();
  return TORCH_SUCCESS;
}
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data) {
  *data = tensor->storage->data();
  return TORCH_SUCCESS;
}

AOTITorchError torch_get_num_threads(uint32_t* threads) {
  *threads = 1;
  return TORCH_SUCCESS;
}
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc body, void* context) {
  if (begin < end) body(begin, end, context);
  return TORCH_SUCCESS;
}

AOTITorchError torch_new_list_reserve_size(size_t, StableListHandle* list) {
  *list = new StableListOpaque;
  return TORCH_SUCCESS;
}
AOTITorchError torch_list_push_back(StableListHandle list, StableIValue item) {
  list->items.push_back(item);
  return TORCH_SUCCESS;
}
AOTITorchError torch_list_size(StableListHandle list, size_t* size) {
  *size = list->items.size();
  return TORCH_SUCCESS;
}
AOTITorchError torch_list_get_item(StableListHandle list, size_t index, StableIValue* item) {
  *item = list->items.at(index);
  return TORCH_SUCCESS;
}
AOTITorchError torch_delete_list(StableListHandle list) {
  delete list;
  return TORCH_SUCCESS;
}

AOTITorchError torch_new_string_handle(const char* data, size_t length, StringHandle* string) {
  *string = new StringOpaque{std::string(data, length)};
  return TORCH_SUCCESS;
}
AOTITorchError torch_delete_string(StringHandle string) {
  delete string;
  return TORCH_SUCCESS;
}
AOTITorchError torch_string_length(StringHandle string, size_t* length) {
  *length = string->text.size();
  return TORCH_SUCCESS;
}
AOTITorchError torch_string_c_str(StringHandle string, const char** data) {
  *data = string->text.c_str();
  return TORCH_SUCCESS;
}

}  // extern "C"
