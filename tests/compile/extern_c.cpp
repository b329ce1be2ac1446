// A C++ program that includes the headers as it does those of C.
extern "C" {
#include "all.h"
}

static int app(void *)
{
    conc_scope s = {};
    CONC_TRY(conc_scope_begin(&s, 1));
    CONC_TRY_IN(&s, conc_yield());
    return conc_scope_end(&s, 0);
}

int main() { return conc_run(app, nullptr); }
