// Plays requests on PyTorch's caching allocator and prints, after each, where it landed and what the allocator counts.
//
// Input: `a TENSOR BYTES STREAM`, `f TENSOR`. Output: address (0: out of memory, the end), retries and the
// peaks of allocated, requested and reserved bytes. MEMORY_FRACTION: the argument of set_per_process_memory_fraction.
#include <c10/cuda/CUDACachingAllocator.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>

int main() {
  namespace caching = c10::cuda::CUDACachingAllocator;
  caching::init(1);
  caching::CUDAAllocator* allocator = caching::get();
  if (const char* fraction = std::getenv("MEMORY_FRACTION")) allocator->setMemoryFraction(std::atof(fraction), 0);
  std::map<long, void*> live;
  char action;
  long tensor;
  while (std::scanf(" %c %ld", &action, &tensor) == 2) {
    void* address = nullptr;
    if (action == 'a') {
      size_t size, stream;
      if (std::scanf("%zu %zu", &size, &stream) != 2) return 1;
      try {
        address = live[tensor] = allocator->raw_alloc_with_stream(size, reinterpret_cast<cudaStream_t>(stream));
      } catch (const c10::OutOfMemoryError&) {
      }
    } else {
      address = live.at(tensor);
      allocator->raw_delete(address);
      live.erase(tensor);
    }
    const auto stats = allocator->getDeviceStats(0);
    std::printf("%lu %ld %ld %ld %ld\n", reinterpret_cast<unsigned long>(address), stats.num_alloc_retries,
                stats.allocated_bytes[0].peak, stats.requested_bytes[0].peak, stats.reserved_bytes[0].peak);
    if (!address) break;
  }
  std::fflush(stdout);
  _exit(0);
}
