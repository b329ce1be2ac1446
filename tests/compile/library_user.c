/* A program that uses library.c's conc inside. */
int library_work(void *arg);

int main(void)
{
    int n = 0;
    return library_work(&n) != 0 || n != 2;
}
