/* A read-only copy of a folder on which every read from storage takes a while: python -m bench.slowfs mounts it.

       slowfs FOLDER MOUNTPOINT DELAY_MS

   Speaks the kernel's FUSE protocol (linux/fuse.h) itself, so that it needs no library. THREADS threads take requests; each
   READ sleeps DELAY_MS before it is answered, many at once, as a network's or an object store's would. The kernel caches what
   was read, and reads ahead, as it does for any file system. Needs root. Ends when it is unmounted. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define THREADS 64
#define MAX_READ (1 << 20)
#define MAX_NODES (1 << 20)
#define FOREVER 1000000 /* seconds that names and attributes stay valid */

static int device;
static useconds_t delay_us;
static char *paths[MAX_NODES]; /* node id -> path; 1 is the folder itself */
static uint64_t n_nodes = 2;
static pthread_mutex_t nodes_lock = PTHREAD_MUTEX_INITIALIZER;

static void answer(uint64_t unique, int error, const void *data, size_t length)
{
    struct fuse_out_header head = {.len = sizeof head + length, .error = -error, .unique = unique};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)data, length}};
    if (writev(device, parts, length ? 2 : 1) < 0 && errno != ENOENT && errno != ENODEV) /* ENOENT: it was interrupted */
        perror("slowfs: answer");
}

static void fill(struct fuse_attr *attr, uint64_t node, const struct stat *st)
{
    *attr = (struct fuse_attr){.ino = node, .size = st->st_size, .blocks = st->st_blocks, .mode = st->st_mode & ~0222u,
                               .nlink = st->st_nlink, .blksize = 4096, .mtime = st->st_mtime};
}

static void look_up(const struct fuse_in_header *in, const char *name)
{
    char *path;
    struct stat st;
    if (asprintf(&path, "%s/%s", paths[in->nodeid], name) < 0) {
        answer(in->unique, ENOMEM, NULL, 0);
        return;
    }
    if (stat(path, &st) < 0) {
        answer(in->unique, errno, NULL, 0);
        free(path);
        return;
    }
    pthread_mutex_lock(&nodes_lock);
    uint64_t node = n_nodes < MAX_NODES ? n_nodes++ : 0;
    if (node)
        paths[node] = path; /* kept until the end: names are asked for once, FOREVER */
    pthread_mutex_unlock(&nodes_lock);
    if (!node) {
        answer(in->unique, ENFILE, NULL, 0);
        free(path);
        return;
    }
    struct fuse_entry_out out = {.nodeid = node, .entry_valid = FOREVER, .attr_valid = FOREVER};
    fill(&out.attr, node, &st);
    answer(in->unique, 0, &out, sizeof out);
}

static void *serve(void *unused)
{
    (void)unused;
    size_t room = MAX_READ + 4096;
    char *request = malloc(room), *data = malloc(MAX_READ);
    if (!request || !data)
        exit(1);
    for (;;) {
        ssize_t n = read(device, request, room);
        if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
            continue;
        if (n <= 0)
            exit(0); /* ENODEV: unmounted */
        struct fuse_in_header *in = (struct fuse_in_header *)request;
        void *argument = in + 1;
        struct stat st;
        switch (in->opcode) {
        case FUSE_INIT: {
            struct fuse_init_in *asked = argument;
            struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION,
                .max_readahead = asked->max_readahead, .flags = asked->flags & (FUSE_ASYNC_READ | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS),
                .max_background = 256, .congestion_threshold = 192, .max_write = 4096, .time_gran = 1, .max_pages = MAX_READ / 4096};
            answer(in->unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_LOOKUP:
            look_up(in, argument);
            break;
        case FUSE_GETATTR:
            if (stat(paths[in->nodeid], &st) < 0) {
                answer(in->unique, errno, NULL, 0);
            } else {
                struct fuse_attr_out out = {.attr_valid = FOREVER};
                fill(&out.attr, in->nodeid, &st);
                answer(in->unique, 0, &out, sizeof out);
            }
            break;
        case FUSE_OPEN: {
            int fd = open(paths[in->nodeid], O_RDONLY | O_CLOEXEC);
            struct fuse_open_out out = {.fh = (uint64_t)fd, .open_flags = FOPEN_KEEP_CACHE};
            answer(in->unique, fd < 0 ? errno : 0, &out, fd < 0 ? 0 : sizeof out);
            break;
        }
        case FUSE_READ: {
            struct fuse_read_in *asked = argument;
            usleep(delay_us);
            ssize_t got = pread((int)asked->fh, data, asked->size < MAX_READ ? asked->size : MAX_READ, (off_t)asked->offset);
            answer(in->unique, got < 0 ? errno : 0, data, got < 0 ? 0 : (size_t)got);
            break;
        }
        case FUSE_RELEASE:
            close((int)((struct fuse_release_in *)argument)->fh);
            answer(in->unique, 0, NULL, 0);
            break;
        case FUSE_OPENDIR: {
            DIR *folder = opendir(paths[in->nodeid]);
            struct fuse_open_out out = {.fh = (uint64_t)(uintptr_t)folder};
            answer(in->unique, folder ? 0 : errno, &out, folder ? sizeof out : 0);
            break;
        }
        case FUSE_READDIR: {
            struct fuse_read_in *asked = argument;
            DIR *folder = (DIR *)(uintptr_t)asked->fh;
            size_t used = 0;
            struct dirent *found;
            seekdir(folder, (long)asked->offset);
            while ((found = readdir(folder))) {
                size_t length = strlen(found->d_name), whole = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + length);
                if (used + whole > asked->size || used + whole > MAX_READ)
                    break;
                struct fuse_dirent *out = (struct fuse_dirent *)(data + used);
                memset(out, 0, whole);
                *out = (struct fuse_dirent){.ino = found->d_ino, .off = (uint64_t)telldir(folder), .namelen = length, .type = found->d_type};
                memcpy(out->name, found->d_name, length);
                used += whole;
            }
            answer(in->unique, 0, data, used);
            break;
        }
        case FUSE_RELEASEDIR:
            closedir((DIR *)(uintptr_t)((struct fuse_release_in *)argument)->fh);
            answer(in->unique, 0, NULL, 0);
            break;
        case FUSE_FORGET:
        case FUSE_BATCH_FORGET:
        case FUSE_INTERRUPT:
            break; /* these want no answer */
        case FUSE_FLUSH:
        case FUSE_ACCESS:
        case FUSE_DESTROY:
            answer(in->unique, 0, NULL, 0);
            break;
        default:
            answer(in->unique, ENOSYS, NULL, 0);
        }
    }
}

int main(int n, char **arguments)
{
    char options[128];
    pthread_t threads[THREADS];
    if (n != 4 || !(paths[1] = realpath(arguments[1], NULL))) {
        fprintf(stderr, "usage: slowfs FOLDER MOUNTPOINT DELAY_MS\n");
        return 2;
    }
    delay_us = (useconds_t)(atof(arguments[3]) * 1000);
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0) {
        perror("slowfs: /dev/fuse");
        return 1;
    }
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d,allow_other", device, MAX_READ);
    if (mount("slowfs", arguments[2], "fuse.slowfs", MS_RDONLY | MS_NOSUID | MS_NODEV, options) < 0) {
        perror("slowfs: mount");
        return 1;
    }
    printf("mounted\n");
    fflush(stdout);
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, serve, NULL)) {
            perror("slowfs: thread");
            return 1;
        }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
