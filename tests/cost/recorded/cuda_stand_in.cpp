// A stand-in for the CUDA runtime (libcudart.so.12): one device that gives out addresses and has no memory behind them.
//
// PyTorch's allocator (libc10_cuda.so) runs on it unchanged, on a machine without a GPU. Addresses ascend and are never
// used twice. STAND_IN_CAPACITY: bytes that the device has.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {
const char* text = std::getenv("STAND_IN_CAPACITY");
const size_t capacity = text ? std::strtoull(text, nullptr, 10) : 1ull << 53;
const size_t step = 1 << 21;
size_t used = 0;
uint64_t next_address = 1ull << 45;
uint64_t next_handle = 1;
std::map<uint64_t, size_t> segments, handles;

bool take(size_t size) {
  if (used + size > capacity) return false;
  used += size;
  return true;
}
uint64_t addresses(size_t size) {
  const uint64_t address = next_address;
  next_address += (size + step - 1) / step * step;
  return address;
}

// The driver's functions for expandable segments.
CUresult attribute(int* value, CUdevice_attribute, CUdevice) { *value = 0; return CUDA_SUCCESS; }
CUresult reserve(CUdeviceptr* address, size_t size, size_t, CUdeviceptr, unsigned long long) {
  *address = addresses(size);
  return CUDA_SUCCESS;
}
CUresult create(CUmemGenericAllocationHandle* handle, size_t size, const CUmemAllocationProp*, unsigned long long) {
  if (!take(size)) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = next_handle++;
  handles[*handle] = size;
  return CUDA_SUCCESS;
}
CUresult release(CUmemGenericAllocationHandle handle) {
  used -= handles.at(handle);
  handles.erase(handle);
  return CUDA_SUCCESS;
}
CUresult granularity(size_t* size, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  *size = step;
  return CUDA_SUCCESS;
}
CUresult error_text(CUresult, const char** result) { *result = "error"; return CUDA_SUCCESS; }
CUresult nothing() { return CUDA_SUCCESS; }
}  // namespace

extern "C" {
cudaError_t cudaMalloc(void** pointer, size_t size) {
  if (!take(size)) return cudaErrorMemoryAllocation;
  const uint64_t address = addresses(size);
  segments[address] = size;
  *pointer = reinterpret_cast<void*>(address);
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  const auto found = segments.find(reinterpret_cast<uint64_t>(pointer));
  if (found == segments.end()) return cudaErrorInvalidValue;
  used -= found->second;
  segments.erase(found);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = capacity - used;
  *total = capacity;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof *properties);
  properties->totalGlobalMem = capacity;
  properties->major = 9;
  return cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t) { return "error"; }
const char* cudaGetErrorString(cudaError_t) { return "error"; }
cudaError_t cudaDriverGetVersion(int* version) { *version = 12080; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long*,
                                        cudaGraph_t*, const cudaGraphNode_t**, size_t*) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  const std::map<std::string, void*> known = {
      {"cuDeviceGetAttribute", reinterpret_cast<void*>(attribute)},
      {"cuMemAddressReserve", reinterpret_cast<void*>(reserve)},
      {"cuMemCreate", reinterpret_cast<void*>(create)},
      {"cuMemRelease", reinterpret_cast<void*>(release)},
      {"cuMemGetAllocationGranularity", reinterpret_cast<void*>(granularity)},
      {"cuGetErrorString", reinterpret_cast<void*>(error_text)}};
  const auto entry = known.find(name);
  *function = entry == known.end() ? reinterpret_cast<void*>(nothing) : entry->second;
  if (found) *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// What else the library links to succeeds and does nothing.
#define SUCCEEDS(name) cudaError_t name##_stand_in() __asm__(#name); cudaError_t name##_stand_in() { return cudaSuccess; }
SUCCEEDS(cudaDeviceEnablePeerAccess)
SUCCEEDS(cudaDeviceGetDefaultMemPool)
SUCCEEDS(cudaDeviceGetStreamPriorityRange)
SUCCEEDS(cudaDeviceSynchronize)
SUCCEEDS(cudaEventCreateWithFlags)
SUCCEEDS(cudaEventDestroy)
SUCCEEDS(cudaEventElapsedTime)
SUCCEEDS(cudaEventQuery)
SUCCEEDS(cudaEventRecord)
SUCCEEDS(cudaEventSynchronize)
SUCCEEDS(cudaFreeAsync)
SUCCEEDS(cudaGetDriverEntryPoint)
SUCCEEDS(cudaGetLastError)
SUCCEEDS(cudaGraphNodeGetDependencies)
SUCCEEDS(cudaIpcCloseMemHandle)
SUCCEEDS(cudaIpcGetMemHandle)
SUCCEEDS(cudaIpcOpenMemHandle)
SUCCEEDS(cudaMallocAsync)
SUCCEEDS(cudaMemPoolGetAttribute)
SUCCEEDS(cudaMemPoolSetAccess)
SUCCEEDS(cudaMemPoolSetAttribute)
SUCCEEDS(cudaMemPoolTrimTo)
SUCCEEDS(cudaMemcpy)
SUCCEEDS(cudaMemcpyAsync)
SUCCEEDS(cudaMemcpyPeerAsync)
SUCCEEDS(cudaSetDevice)
SUCCEEDS(cudaStreamCreateWithPriority)
SUCCEEDS(cudaStreamQuery)
SUCCEEDS(cudaStreamSynchronize)
SUCCEEDS(cudaStreamWaitEvent)
SUCCEEDS(cudaThreadExchangeStreamCaptureMode)
}
