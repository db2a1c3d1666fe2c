/* Put before the C library (LD_PRELOAD), this stands between a process and its fsyncs.
 *
 * In the directory named by FSYNC_GATE, while a file `closed` exists, fsync and fdatasync wait
 * before they reach the kernel, having left the path of the file to be synced in `entered`. While a
 * file `fail` exists they answer EIO. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int present(const char *directory, const char *name) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return access(path, F_OK) == 0;
}

/* Written beside its place and renamed, so that a reader never finds half of it. */
static void tell(const char *directory, int fd) {
    char link[64], file[PATH_MAX], part[PATH_MAX], whole[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, file, sizeof file - 1);
    file[length < 0 ? 0 : length] = '\0';
    snprintf(part, sizeof part, "%s/entered.part", directory);
    snprintf(whole, sizeof whole, "%s/entered", directory);
    FILE *out = fopen(part, "w");
    if (!out)
        abort();
    fputs(file, out);
    fclose(out);
    if (rename(part, whole) != 0)
        abort();
}

static int gated(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *directory = getenv("FSYNC_GATE");
    if (directory && present(directory, "fail")) {
        errno = EIO;
        return -1;
    }
    if (directory && present(directory, "closed")) {
        tell(directory, fd);
        while (present(directory, "closed"))
            usleep(1000);
    }
    return real(fd);
}

int fsync(int fd) { return gated("fsync", fd); }

int fdatasync(int fd) { return gated("fdatasync", fd); }
