// Records every kernel, copy and fill of a CUDA program with its start and end on the device.
//
//   g++ -O2 -shared -fPIC timeline.cpp -I"$CUDA_PATH"/include -L"$CUDA_PATH"/lib64 -lcupti -o libtimeline.so
//   CUDA_INJECTION64_PATH=$PWD/libtimeline.so TIMELINE=trace.tsv perf train --preset 7b
//   python3 timeline.py trace.tsv
//
// Lines of: start in ns, end in ns, stream, name. Recording costs time on the host; the times on the device are the card's.
#include <cupti.h>

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <mutex>

namespace {

// The records of CUDA 13.0; other versions number them otherwise.
using Kernel = CUpti_ActivityKernel10;
using Copy = CUpti_ActivityMemcpy6;
using Fill = CUpti_ActivityMemset4;

constexpr size_t buffer_bytes = 8 << 20;
std::mutex lock;
FILE* out = nullptr;

void need(uint8_t** buffer, size_t* size, size_t* records) {
    *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, buffer_bytes));
    *size = buffer_bytes;
    *records = 0;
}

template <class Record>
void line(const Record* record, const char* name) {
    std::fprintf(out, "%llu\t%llu\t%u\t%s\n", static_cast<unsigned long long>(record->start),
                 static_cast<unsigned long long>(record->end), record->streamId, name);
}

void full(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
    std::lock_guard<std::mutex> guard(lock);
    CUpti_Activity* record = nullptr;
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            auto* kernel = reinterpret_cast<Kernel*>(record);
            line(kernel, kernel->name);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            auto* copy = reinterpret_cast<Copy*>(record);
            const char* name = copy->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_HTOD   ? "copy to the device"
                               : copy->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOH ? "copy to the host"
                                                                                    : "copy on the device";
            line(copy, name);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
            line(reinterpret_cast<Fill*>(record), "fill");
        }
    }
    std::free(buffer);
}

void finish() {
    cuptiActivityFlushAll(1);
    std::lock_guard<std::mutex> guard(lock);
    if (out) std::fclose(out);
    out = nullptr;
}

}  // namespace

extern "C" int InitializeInjection() {
    const char* path = std::getenv("TIMELINE");
    out = std::fopen(path ? path : "trace.tsv", "w");
    if (!out) return 0;
    cuptiActivityRegisterCallbacks(need, full);
    for (CUpti_ActivityKind kind : {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET}) {
        if (cuptiActivityEnable(kind) != CUPTI_SUCCESS) return 0;
    }
    std::atexit(finish);
    return 1;
}
