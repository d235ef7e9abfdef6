import java.io.IOException;
import java.net.URI;
import java.nio.file.FileSystem;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import org.apache.xbean.asm9.ClassReader;
import org.apache.xbean.asm9.ClassVisitor;
import org.apache.xbean.asm9.ClassWriter;
import org.apache.xbean.asm9.MethodVisitor;
import org.apache.xbean.asm9.Opcodes;

/**
 * Lets the Snapshot of a Delta jar ask FromChecksum, and adds that class to the jar.
 *
 * Arguments: the jar, which is changed, and the folder with FromChecksum's class. The library that
 * rewrites the class is part of Spark.
 */
public final class PatchSnapshot {
    private static final String PACKAGE = "org/apache/spark/sql/delta/";
    private static final String STATE = PACKAGE + "SnapshotStateManager";
    private static final Set<String> ANSWERED = Set.of(
        "setTransactions", "domainMetadata", "fileSizeHistogram", "sizeInBytes", "numOfFiles"
    );

    public static void main(String[] arguments) throws IOException {
        Path classes = Path.of(arguments[1]);
        URI jar = URI.create("jar:" + Path.of(arguments[0]).toUri());
        try (FileSystem files = FileSystems.newFileSystem(jar, Map.of())) {
            Path snapshot = files.getPath(PACKAGE + "Snapshot.class");
            Files.write(snapshot, patch(Files.readAllBytes(snapshot)));
            String name = PACKAGE + "FromChecksum.class";
            Files.copy(classes.resolve(name), files.getPath(name));
        }
    }

    private static byte[] patch(byte[] original) {
        ClassWriter written = new ClassWriter(0);
        int[] replaced = {0};
        new ClassReader(original).accept(new ClassVisitor(Opcodes.ASM9, written) {
            @Override
            public MethodVisitor visitMethod(
                int access, String method, String type, String signature, String[] exceptions
            ) {
                MethodVisitor next = super.visitMethod(access, method, type, signature, exceptions);
                return new MethodVisitor(Opcodes.ASM9, next) {
                    @Override
                    public void visitMethodInsn(
                        int opcode, String owner, String name, String descriptor, boolean isInterface
                    ) {
                        // Scala calls a trait's method through a static one with a dollar sign.
                        boolean isAnswered = owner.equals(STATE) && ANSWERED.contains(method)
                            && name.equals(method + "$");
                        if (!isAnswered) {
                            super.visitMethodInsn(opcode, owner, name, descriptor, isInterface);
                            return;
                        }
                        replaced[0]++;
                        super.visitMethodInsn(
                            opcode, PACKAGE + "FromChecksum", method, descriptor, false
                        );
                    }
                };
            }
        }, 0);
        if (replaced[0] != ANSWERED.size()) {
            throw new IllegalStateException("this Delta is not 4.4.0: patched " + replaced[0]);
        }
        return written.toByteArray();
    }
}
