/* Asks the kernel for a quote over 64 bytes of 0x5a by way of configfs-tsm and writes it to standard output.
 * A plain client that knows nothing of simulators: see Documentation/ABI/testing/configfs-tsm-report of Linux. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ENTRY "/sys/kernel/config/tsm/report/c-client"

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    rmdir(ENTRY);
    return 1;
}

int main(void)
{
    static unsigned char quote[131072];
    unsigned char report_data[64];
    char provider[32] = {0};
    ssize_t size;
    int fd;

    memset(report_data, 0x5a, sizeof report_data);
    if (mkdir(ENTRY, 0755) != 0)
        return fail("mkdir");
    if ((fd = open(ENTRY "/provider", O_RDONLY)) < 0 || read(fd, provider, sizeof provider - 1) < 0)
        return fail("provider");
    close(fd);
    if (strcmp(provider, "tdx_guest\n") != 0)
        return fail("not a TDX guest");
    if ((fd = open(ENTRY "/inblob", O_WRONLY)) < 0 || write(fd, report_data, sizeof report_data) != 64)
        return fail("inblob");
    close(fd);
    if ((fd = open(ENTRY "/outblob", O_RDONLY)) < 0 || (size = read(fd, quote, sizeof quote)) <= 0)
        return fail("outblob");
    close(fd);
    if (rmdir(ENTRY) != 0)
        return fail("rmdir");
    return fwrite(quote, 1, (size_t)size, stdout) == (size_t)size ? 0 : fail("stdout");
}
