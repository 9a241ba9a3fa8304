"""Which module of the user's model a node is a step of."""

from torch import fx

from bnnfx.graph.record import record_of


class Blocks:
    """The blocks of a graph, found from what is left of the model's names.

    A call of a module says it by its path, any other traced node by the module stack that `torch.fx` noted. Nodes that
    passes made are named for a layer or read constants that are. What is then left belongs where its only reader does
    if it has one operand, or else where its latest operand does.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        paths = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
        self._top = {path for path in paths if "." not in path}
        record = record_of(gm)
        if record is not None:
            for report in record.reports:
                paths |= {*report.applied, *(remark.subject for remark in (*report.refused, *report.notes))}
        parents = {path.rpartition(".")[0] for path in paths if ", " not in path}  # some remarks are on several layers
        self._flat = sorted(((block.replace(".", "_") + "_", block) for block in parents if block), key=_length)
        self._order = {node: index for index, node in enumerate(gm.graph.nodes)}
        self._found: dict[fx.Node, str] = {}
        for node in gm.graph.nodes:
            named = self._named(node)
            if named is not None:
                self._found[node] = named
        for node in reversed(gm.graph.nodes):
            if node not in self._found and len(node.users) == 1 and len(_operands(node)) == 1:
                reader = next(iter(node.users))
                if reader in self._found and reader.op != "output":
                    self._found[node] = self._found[reader]
        for node in gm.graph.nodes:
            if node not in self._found:
                self._found[node] = self._beside(node)

    def of(self, node: fx.Node) -> str:
        """Qualified name of the block, empty for the model itself."""
        return self._found[node]

    def title(self, node: fx.Node) -> str:
        """The node's name inside its block."""
        path = str(node.target) if node.op == "call_module" else node.name
        block = self._found[node]
        for prefix in (f"{block}.", f"{block.replace('.', '_')}_"):
            if block and path.startswith(prefix) and path != prefix:
                return path[len(prefix) :]
        return path

    def _named(self, node: fx.Node) -> str | None:
        if node.op in ("placeholder", "output"):
            return ""
        if node.op == "call_module":
            return str(node.target).rpartition(".")[0]
        stack = node.meta.get("nn_module_stack")
        if stack:
            return str(list(stack.values())[-1][0])
        names = [node.name, *(str(source.target) for source in node.all_input_nodes if source.op == "get_attr")]
        found = next((block for name in names for flat, block in self._flat if name.startswith(flat)), None)
        return "" if found is None and node.name in self._top else found

    def _beside(self, node: fx.Node) -> str:
        """The block of the latest operand, or the innermost one around it that another neighbour is in as well."""
        operands = sorted(_operands(node), key=self._order.__getitem__)
        if not operands:
            return ""
        others = [self._found[other] for other in (*operands[:-1], *node.users) if other in self._found]
        block = latest = self._found[operands[-1]]
        while block and not any(f"{other}.".startswith(f"{block}.") for other in others):
            block = block.rpartition(".")[0]
        return block or latest


def _operands(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if source.op != "get_attr"]


def _length(pair: tuple[str, str]) -> tuple[int, str]:
    """Longest first: a block inside another comes before it."""
    return -len(pair[0]), pair[1]
