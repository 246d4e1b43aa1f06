// A driver library that says of every device that its compute capability is 8.0, and is the driver's own otherwise.
//
//   gcc -O2 -shared -fPIC libcuda.c -o older/libcuda.so -Wl,--no-as-needed -l:libcuda.so.1 -ldl    (in a folder `older`)
//   LD_LIBRARY_PATH=$PWD/older:$LD_LIBRARY_PATH perf --capability 80 check --device cuda:0
//
// cubecl then compiles every kernel for sm_80 and loads it as PTX, which the driver translates for the card that is there. cuBLASLt
// opens the driver by its full name and still knows the card.
#define _GNU_SOURCE
#include <dlfcn.h>

enum { MAJOR = 75, MINOR = 76 };

int cuDeviceGetAttribute(int* value, int attribute, int device) {
    static int (*own)(int*, int, int);
    if (!own) {
        own = (int (*)(int*, int, int))dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuDeviceGetAttribute");
    }
    if (attribute == MAJOR || attribute == MINOR) {
        *value = attribute == MAJOR ? 8 : 0;
        return 0;
    }
    return own(value, attribute, device);
}
